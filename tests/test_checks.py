"""What a check says of a pretraining, and the folder from which it goes on."""

import dataclasses
import shutil

import keras
import numpy as np
import pytest

import tlkeras as tl
from tlkeras.checks import Checks, RunFolder
from tlkeras.pretraining import Pretraining, pretrain

IMAGES = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3)).astype(np.uint8)
LABELS = np.arange(16) % 2


def small(width=4) -> tl.Backbone:
    return tl.small_backbone(16, width=width, num_stages=2)


def run(folder=None, task=None, backbone=None, judge=None, **changes):
    settings = Pretraining(**{"steps": 2, "batch_size": 8, "checks": 1, "verbose": 0, "folder": folder} | changes)
    return pretrain(backbone or small(), IMAGES, task or tl.Rotation(), judge=judge, settings=settings)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run; not to be written into."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    run(folder)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    """A copy to do harm to."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def policy():
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy("float32")


def test_only_weights_that_the_run_wrote_are_deleted(tmp_path):
    for name in ("mine.weights.h5", "0.weights.h5"):
        (tmp_path / name).write_bytes(b"years of work")
    run(tmp_path, checks=2)
    assert sorted(path.name for path in tmp_path.glob("*.h5")) == ["0.weights.h5", "2.weights.h5", "mine.weights.h5"]
    assert (tmp_path / "mine.weights.h5").read_bytes() == b"years of work"


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({"task": tl.Labels(LABELS)}, {"task": tl.Labels(LABELS[::-1])}, "targets = "),
        ({"task": tl.SimCLR(width=8)}, {"task": tl.SimCLR(np.float32(0.9), width=8)}, "task.temperature = 0.2, now"),
        ({}, {"judge": (IMAGES, LABELS)}, "judge = None"),
        ({"judge": (IMAGES, LABELS)}, {"judge": (IMAGES[::-1], LABELS)}, "judge = "),
        (
            {},
            {"backbone": dataclasses.replace(small(), weights="imagenet")},
            "weights = 'random', now it is 'imagenet'",
        ),
        ({}, {"backbone": small(width=5)}, "num_weights = "),
    ],
    ids=["labels", "numpy scalar", "judge added", "judge changed", "start weights", "width"],
)
def test_another_run_is_not_taken_for_this_one(first, second, words, tmp_path):
    run(tmp_path, **first)
    with pytest.raises(ValueError, match=words):
        run(tmp_path, **second)


def test_what_training_does_not_read_may_change(tmp_path):
    first = run(tmp_path, tl.Colorization(grid=40))
    assert run(tmp_path, tl.Colorization(grid=40, temperature=1.0)).rows[1] == first.rows[1]


@pytest.mark.parametrize("name", ["mixed_float16", "mixed_bfloat16"])
def test_a_run_in_half_precision_is_measured_saved_and_goes_on(name, policy, tmp_path):
    policy(name)
    task = tl.SimCLR(width=8)
    whole = run(tmp_path / "whole", task, judge=(IMAGES, LABELS), steps=4, checks=2)
    assert all(np.isfinite([row["rank"], row["embedding_spread"], row["accuracy"]]).all() for row in whole.rows)

    def die(self, model, rows):
        save(self, model, rows)
        raise KeyboardInterrupt

    save = RunFolder.save
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, "save", die)
        keras.utils.set_random_seed(0)
        run(tmp_path / "killed", task, judge=(IMAGES, LABELS), steps=4, checks=2)
    resumed = run(tmp_path / "killed", task, judge=(IMAGES, LABELS), steps=4, checks=2)
    assert [row["step"] for row in resumed.rows] == [0, 2, 4]
    for ours, theirs in ((resumed.model, whole.model), (resumed.model.optimizer, whole.model.optimizer)):
        assert len(ours.variables) == len(theirs.variables) > 10
        for a, b in zip(ours.variables, theirs.variables, strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-2)
    policy("float32")
    with pytest.raises(ValueError, match="precision = "):
        run(tmp_path / "killed", task, judge=(IMAGES, LABELS), steps=4, checks=2)


def test_a_training_that_diverges_ends_in_a_warning_and_keeps_the_last_good_weights(tmp_path, monkeypatch, caplog):
    begin = Checks.on_epoch_begin

    def begin_and_spoil(self, epoch, logs=None):
        begin(self, epoch, logs)
        if epoch == 1:
            for variable in self.model.trainable_variables:
                variable.assign(variable * np.nan)

    monkeypatch.setattr(Checks, "on_epoch_begin", begin_and_spoil)
    done = run(tmp_path, judge=(IMAGES, LABELS), steps=6, checks=3)
    assert [row["step"] for row in done.rows] == [0, 2, 4]
    assert all(np.isnan(done.rows[-1][key]) for key in ("loss", "spread", "rank", "accuracy"))
    assert "Is the learning rate too high" in caplog.text and "collapsed" not in caplog.text
    assert [path.name for path in tmp_path.glob("*.h5")] == ["2.weights.h5"]


def test_a_backbone_whose_features_are_no_numbers_is_refused_before_the_first_step():
    backbone = small()
    backbone.model.set_weights([array * np.nan for array in backbone.model.get_weights()])
    with pytest.raises(ValueError, match="before the first step"):
        run(backbone=backbone)


@pytest.mark.parametrize("text", ["{}", "[]", '{"identity": {}, "rows": []}', '{"identity": {}, "rows": [{}]}'])
def test_a_damaged_record_is_named(text, folder):
    (folder / "run.json").write_text(text)
    with pytest.raises(ValueError, match="run.json is damaged .*: delete .*run.json to start anew"):
        run(folder)


def test_weights_that_are_gone_or_cut_off_are_named(folder):
    content = (folder / "2.weights.h5").read_bytes()
    (folder / "2.weights.h5").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="2.weights.h5 is missing, damaged .*: delete .*run.json"):
        run(folder)
    (folder / "2.weights.h5").unlink()
    with pytest.raises(ValueError, match="2.weights.h5 is missing"):
        run(folder)


def test_a_file_in_the_folders_place_is_refused_before_anything_is_trained(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(ValueError, match="take another folder"):
            run(place)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    run("~/mine")
    assert (tmp_path / "mine" / "run.json").exists() and not (tmp_path / "~").exists()
