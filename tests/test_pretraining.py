import dataclasses
import json

import keras
import numpy as np
import pytest

import tlkeras as tl
from tlkeras.pretraining import Pretraining, pretrain, split_in_half

SHORT = dict(steps=6, batch_size=16, checks=3, verbose=0)


@pytest.fixture(scope="module")
def fractals():
    return tl.make_fractals(8, 20, image_size=32, family=2)


def small(seed=0):
    keras.utils.set_random_seed(seed)
    return tl.small_backbone(32, width=8, num_stages=3)


def test_sounds_teach_what_things_are_made_of_without_a_label():
    things, others = tl.make_struck_objects(600, image_size=32), tl.make_struck_objects(300, image_size=32, seed=1)
    gains = []
    for seed in range(3):
        keras.utils.set_random_seed(seed)
        settings = Pretraining(steps=80, batch_size=64, checks=1, seed=seed, verbose=0)
        done = pretrain(
            tl.small_backbone(32, width=8),
            things.images,
            tl.Sound(sounds=things.sounds),
            judge=(others.images, others.materials),
            settings=settings,
        )
        gains.append(done.rows[-1]["accuracy"] - done.rows[0]["accuracy"])
    assert np.mean(gains) > 0.1, gains


def test_every_check_says_what_the_features_are_worth(fractals):
    done = pretrain(small(), fractals[0], tl.Rotation(), judge=fractals, settings=Pretraining(**SHORT))
    assert [row["step"] for row in done.rows] == [0, 2, 4, 6]
    assert all(0 <= row["accuracy"] <= 1 and row["rank"] > 1 for row in done.rows)
    assert done.backbone.weights == "pretrained by Rotation"


def test_training_changes_the_backbone_that_was_given_and_it_becomes_a_classifier(fractals):
    backbone = small()
    before = backbone.model.get_weights()
    done = pretrain(backbone, fractals[0], tl.SimCLR(width=16), settings=Pretraining(**SHORT))
    assert done.backbone.model is backbone.model
    assert any(not np.array_equal(a, b) for a, b in zip(before, backbone.model.get_weights(), strict=True))
    model = tl.build_classifier(done.backbone, 8)
    assert model.predict(fractals[0][:4], verbose=0).shape == (4, 8)


@pytest.mark.parametrize("drops", [False, True], ids=["plain", "with dropout"])
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(drops, fractals, tmp_path):
    def begin(seed=0):
        backbone = small(seed=seed)
        if drops:  # as EfficientNets do inside; no file of weights keeps what comes next
            spoilt = keras.layers.Dropout(0.5)(backbone.model.output)
            backbone = dataclasses.replace(backbone, model=keras.Model(backbone.model.inputs[0], spoilt))
        return backbone

    def run(folder, stop_after=None):
        backbone = begin()
        settings = Pretraining(**SHORT, folder=folder)
        if stop_after:
            from tlkeras.checks import RunFolder

            save = RunFolder.save

            def save_and_die(self, model, rows):
                save(self, model, rows)
                if rows[-1]["step"] == stop_after:
                    raise KeyboardInterrupt

            with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(RunFolder, "save", save_and_die)
                pretrain(backbone, fractals[0], tl.SimCLR(width=16), settings=settings)
            backbone = begin(seed=1)  # another process begins with other weights
        return pretrain(backbone, fractals[0], tl.SimCLR(width=16), settings=settings)

    whole, resumed = run(tmp_path / "whole"), run(tmp_path / "killed", stop_after=4)
    for a, b in zip(whole.model.get_weights(), resumed.model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert [row["step"] for row in resumed.rows] == [0, 2, 4, 6]
    assert resumed.rows[-1]["loss"] == pytest.approx(whole.rows[-1]["loss"], rel=1e-4)


def test_a_finished_run_is_not_trained_again_and_another_is_refused(fractals, tmp_path):
    settings = Pretraining(**SHORT, folder=tmp_path)
    first = pretrain(small(), fractals[0], tl.Autoencoder(), settings=settings)
    again = pretrain(small(seed=5), fractals[0], tl.Autoencoder(), settings=settings)
    for a, b in zip(first.model.get_weights(), again.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [path.name for path in tmp_path.glob("*.weights.h5")] == ["6.weights.h5"]
    assert json.loads((tmp_path / "run.json").read_text())["rows"][-1]["step"] == 6
    with pytest.raises(ValueError, match="noise = 0.0, now it is 9.0"):
        pretrain(small(), fractals[0], tl.Autoencoder(noise=9.0), settings=settings)
    with pytest.raises(ValueError, match="task = 'Autoencoder'"):
        pretrain(small(), fractals[0], tl.Rotation(), settings=settings)
    with pytest.raises(ValueError, match="pictures ="):  # as many, but others
        pretrain(small(), fractals[0][::-1], tl.Autoencoder(), settings=settings)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match="run.json is damaged"):
        pretrain(small(), fractals[0], tl.Autoencoder(), settings=settings)


def test_a_collapse_is_seen_and_said(fractals, caplog):
    settings = Pretraining(steps=100, batch_size=32, learning_rate=1e-2, checks=1, verbose=0)
    task = tl.VICReg(width=16, variance=0.0, covariance=0.0)  # nothing left but to agree
    done = pretrain(small(), fractals[0], task, settings=settings)
    healthy = pretrain(small(), fractals[0], tl.VICReg(width=16), settings=settings)
    assert done.rows[-1]["embedding_spread"] < 0.1 < 0.3 < healthy.rows[-1]["embedding_spread"]
    assert done.collapsed and not healthy.collapsed
    assert "collapsed" in caplog.text and "averages have caught up" in caplog.text


def test_division_is_by_halves_of_each_class_and_shares_nothing():
    images = np.arange(40)[:, None, None, None] * np.ones((1, 2, 2, 3))
    (learn, labels), (judge, truth) = split_in_half(images, np.arange(40) % 4, 0)
    assert np.bincount(labels).tolist() == np.bincount(truth).tolist() == [5, 5, 5, 5]
    assert not {*learn[:, 0, 0, 0]} & {*judge[:, 0, 0, 0]}


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((40, 24, 24, 3)), "takes pictures"),
        (np.random.default_rng(0).random((40, 32, 32, 3)), "must be raw"),
        (np.full((8, 32, 32, 3), 99), "less than a batch"),
        (np.zeros((0, 32, 32, 3)), "takes pictures"),
        (np.full((40, 32, 32, 3), "99"), "must be numbers"),
    ],
)
def test_pictures_that_cannot_be_right_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        pretrain(small(), images, tl.Rotation(), settings=Pretraining(**SHORT))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.full((16, 24, 24, 3), 99), np.arange(16) % 2, "judge: the backbone takes pictures"),
        (np.full((16, 32, 32, 3), 0.5), np.arange(16) % 2, "judge: pictures must be raw"),
        (np.full((0, 32, 32, 3), 99), np.arange(0), "judge: the backbone takes pictures"),
        (np.full((16, 32, 32, 3), 99), np.arange(16)[:, None] % 2, r"int64 labels \(16, 1\)"),
        (np.full((16, 32, 32, 3), 99), np.full(16, "ant"), "<U3 labels"),
        (np.full((16, 32, 32, 3), 99), np.zeros(16), "float64 labels"),
        (np.full((16, 32, 32, 3), 99), np.arange(16) % 2 - 1, "whole number from 0"),
        (np.full((16, 32, 32, 3), 99), np.arange(15) % 2, "for 16 pictures"),
        (np.full((16, 32, 32, 3), 99), np.zeros(16, int), "two classes or more"),
        (np.full((16, 32, 32, 3), 99), np.arange(16) % 5, "smallest with 3"),
    ],
)
def test_a_judge_that_cannot_be_right_is_refused(fractals, images, labels, message):
    with pytest.raises(ValueError, match=message):
        pretrain(small(), fractals[0], tl.Rotation(), judge=(images, labels), settings=Pretraining(**SHORT))


def test_a_backbone_for_grey_pictures_is_refused_with_the_way_on(fractals):
    backbone = tl.load_backbone(weights=None, alpha=0.35, image_size=32, channels=1)
    with pytest.raises(ValueError, match="load it with channels=3"):
        pretrain(backbone, fractals[0][..., :1], tl.Rotation(), settings=Pretraining(**SHORT))


def test_a_frozen_backbone_is_refused(fractals):
    backbone = small()
    tl.build_classifier(backbone, 3)
    backbone.model.trainable = False
    with pytest.raises(ValueError, match="frozen"):
        pretrain(backbone, fractals[0], tl.Rotation(), settings=Pretraining(**SHORT))


@pytest.mark.parametrize("wrong", [dict(steps=0), dict(steps=10, checks=3), dict(batch_size=1), dict(learning_rate=0)])
def test_settings_outside_their_range_are_refused(wrong):
    with pytest.raises(
        ValueError, match="10 cannot be divided into 3" if "checks" in wrong else f"{next(iter(wrong))} must be"
    ):
        Pretraining(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [dict(steps=1e1), dict(seed="0"), dict(checks=None), dict(learning_rate="2e-3"), dict(weight_decay=float("nan"))],
)
def test_what_is_no_number_is_refused_by_its_name(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        Pretraining(**wrong)


def test_numbers_of_numpy_are_those_of_python():
    settings = Pretraining(steps=np.int64(4), checks=np.int32(2), learning_rate=np.float32(0.5), seed=np.uint8(3))
    assert settings == Pretraining(steps=4, checks=2, learning_rate=0.5, seed=3)
    assert json.dumps([settings.steps, settings.checks, settings.learning_rate, settings.seed]) == "[4, 2, 0.5, 3]"
