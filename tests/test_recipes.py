from types import SimpleNamespace

import keras
import numpy as np
import pytest
from conftest import make_tiny_backbone

import tlkeras as tl
from tlkeras.backbones import load_backbone
from tlkeras.evaluation import evaluate
from tlkeras.freezing import trainable_layers, unfreeze_top
from tlkeras.history import History
from tlkeras.loaders import load_arrays
from tlkeras.predictions import predict
from tlkeras.recipes import transfer
from tlkeras.settings import Settings
from tlkeras.splits import Split

QUIET = Settings(verbose=0)
SHORT = tl.Pretraining(steps=1, batch_size=8, checks=1, verbose=0)


class Seen(keras.layers.Layer):
    """An augmentation that changes nothing and counts what it is given."""

    batches = 0

    def call(self, images):
        Seen.batches += 1
        return images


@pytest.fixture
def data(colour_pictures):
    images, labels = colour_pictures
    return load_arrays(images, labels, split=Split(validation=0.4, near_duplicates=False))


@pytest.fixture
def given(monkeypatch):
    """All training pictures that a phase is given, once."""
    found = []

    def look(model, train, *rest, **options):
        found.append(next(iter(train.unbatch().batch(1000)))[0].numpy())
        raise StopIteration

    monkeypatch.setattr("tlkeras.recipes.train_head", look)
    return found


def unchanged(images, data):
    """How many of the pictures are in the training data as they are."""
    own = {image.tobytes() for batch, _ in data.ordered("train") for image in batch.numpy()}
    return sum(image.tobytes() in own for image in images)


@pytest.mark.parametrize(
    ("own", "asked", "left_alone"),
    [(None, {}, False), (None, {"augment": None}, True), (Seen(), {}, True), (Seen(), {"augment": None}, True)],
    ids=["light unless told otherwise", "none", "the way of the data", "the way of the data comes first"],
)
def test_training_pictures_are_changed_as_asked(data, given, own, asked, left_alone):
    data, Seen.batches = data.augmented(own), 0
    with pytest.raises(StopIteration):
        transfer(data, make_tiny_backbone(), strategy="head", settings=QUIET, **asked)
    number = len(data.labels["train"])
    assert (unchanged(given[0], data) == number) if left_alone else (unchanged(given[0], data) < number / 2)
    assert (Seen.batches > 0) == (own is not None)


def test_pictures_that_nothing_changes_are_passed_through_once(data):
    result = transfer(data, make_tiny_backbone(), strategy="head", augment=None, settings=QUIET)
    epochs = len(result.history.rows)
    assert int(result.model.optimizer.iterations) == epochs * -(-len(data.labels["train"]) // 32)


@pytest.mark.parametrize("asked", [{}, {"head_factor": 5.0, "interpolate": 0.25}], ids=["by default", "as asked"])
def test_from_a_trained_head_all_learns_alike_and_goes_the_best_of_the_way(data, monkeypatch, asked):
    given = []

    def look(*rest, settings, **others):
        given.append((settings.head_factor, settings.interpolate))
        return History()

    monkeypatch.setattr("tlkeras.recipes.fine_tune", look)
    result = transfer(data, make_tiny_backbone(), settings=Settings(verbose=0, **asked))
    assert result.strategy == "probe+fine-tune"
    assert given == [(asked.get("head_factor", 1.0), asked.get("interpolate", "best"))]
    opened, stages = trainable_layers(result.model), result.model.transfer.stages
    assert len(stages) < 4 and opened == unfreeze_top(result.model, len(stages))  # the last four, or all of fewer


def test_a_class_of_one_picture_is_no_reason_to_stop(caplog):
    images = np.random.default_rng(0).integers(0, 256, (26, 32, 32, 3), dtype="uint8")
    labels = np.array([0, 1] * 12 + [2, 2])
    data = load_arrays(images, labels, class_names=["ant", "bee", "wasp"], split=Split(0.5, near_duplicates=False))
    result = transfer(data, make_tiny_backbone(), settings=QUIET)
    assert result.strategy == "fine-tune" and list(result.history.kept) == ["head", "fine-tune"]
    assert "'wasp' has 1" in caplog.text


def test_each_seed_and_strategy_has_its_own_place_in_the_run_folder(data, tmp_path, caplog):
    settings = Settings(verbose=0, run_folder=tmp_path)
    rows, backbone = {}, make_tiny_backbone()
    for seed in (0, 1, 0):
        found = transfer(data, backbone, strategy="head", augment=None, seed=seed, settings=settings)
        rows.setdefault(seed, []).append(found.history.rows)
    assert rows[0][0] == rows[0][1] != rows[1][0]
    assert found.history.seconds["head"] > sum(row["seconds"] for row in rows[0][1])  # those of before count
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.npz")} == {
        "head 0/head.npz", "head 1/head.npz",
    }  # fmt: skip
    assert caplog.text.count("nothing is trained") == 1


def test_a_rare_class_is_learnt_by_the_default_recipe():
    """Eleven to one: with weights in training alone, epochs were judged by another loss and all of them put back."""
    rng = np.random.default_rng(0)
    labels = (np.arange(480) % 12 == 0).astype(int)
    colours = rng.normal(110, 12, (480, 1, 1, 3)) + 25 * labels[:, None, None, None]
    images = (colours + rng.normal(0, 6, (480, 32, 32, 3))).clip(0, 255).astype("uint8")
    data = load_arrays(images, labels, split=Split(validation=0.5, near_duplicates=False))
    backbone = load_backbone(weights="embedded", image_size=32)
    result = transfer(data, backbone, strategy="head", augment=None, settings=QUIET)
    assert evaluate(predict(result.model, data)).balanced_accuracy.value > 0.7


def test_the_same_seed_gives_the_same_head_whatever_ran_on_these_data_before(data):
    data, heads, backbone = data.augmented("light"), [], make_tiny_backbone()
    for _ in range(2):
        model = transfer(data, backbone, strategy="head", seed=0, settings=QUIET).model
        heads.append(model.layers[-1].get_weights()[0])
    np.testing.assert_array_equal(*heads)


def test_labels_that_are_no_classes_are_refused_with_the_way_that_takes_them(colour_pictures):
    images, _ = colour_pictures
    ages = load_arrays(images, np.linspace(0, 1, len(images)), split=Split(near_duplicates=False))
    with pytest.raises(ValueError, match=r"build_classifier\(..., task=...\) and train_head"):
        transfer(ages, make_tiny_backbone())


MISTAKES = [
    (lambda it: tl.predict(it.model, it.data.validation), "load_folder, load_arrays or load_tfds gave, as a whole"),
    (lambda it: tl.open_test(it.model, it.data.test), "as a whole and not one of its splits; got NoneType"),
    (lambda it: tl.transfer(it.data.train, it.backbone), "as a whole and not one of its splits"),
    (lambda it: tl.advise(it.backbone, it.data), "as a whole and not one of its splits; got Backbone"),
    (lambda it: tl.rank_backbones(it.data, "MobileNetV2"), "a list of two networks or more, got 'MobileNetV2'"),
    (lambda it: tl.train_head(it.model, it.data), r"got Data. Give one of its splits: data.train\."),
    (
        lambda it: tl.train_head(it.model, it.images, it.labels),
        r"got ndarray. For arrays: make_batches\(images, labels",
    ),
    (lambda it: tl.train_head(it.backbone, it.data.train), r"This Backbone was not made .* call build_classifier\("),
    (lambda it: tl.train_head(it.model, it.data.train, settings={"patience": 3}), "settings are Settings"),
    (lambda it: tl.extract_features(it.backbone, it.data), "Give one of its splits: data.train"),
    (lambda it: tl.build_classifier(it.backbone, it.data), "such as data.num_classes, got Data"),
    (lambda it: tl.probe(it.features.last), r"extract_features\(..., stages='all'\) gave.* got ndarray"),
    (lambda it: tl.probe(it.features, it.labels), "of other pictures the same; got ndarray"),
    (lambda it: tl.fit_probe(it.features, it.features.labels), "such as Features.last, got Features"),
    (lambda it: tl.evaluate(it.model), r"what predict\(model, data\) gave, got Functional"),
    (lambda it: tl.compare(tl.predict(it.model, it.data), it.labels), r"what predict\(model, data\) gave, got ndarray"),
    (lambda it: tl.pretrain(it.backbone, it.images, tl.SimCLR), r"an object such as SimCLR\(\), got <class"),
    (lambda it: tl.probe_head(it.model, it.data.train), "as a whole and not one of its splits"),
    (
        lambda it: tl.build_classifier(it.backbone, 3, augmentation="light"),
        r"such as light_augmentation\(...\), got",
    ),
    (lambda it: tl.build_classifier(it.backbone, 3, head="mlp"), r"such as build_head\(...\), got 'mlp'"),
    (lambda it: tl.extract_features(it.backbone, it.data.train, stages=1), "'last', 'all' or of .*; got 1"),
    (lambda it: tl.export_artifact("run", "ants.tflite"), r"what load_artifact\(folder\) gave, got str"),
    (lambda it: tl.make_batches(it.images, it.labels, batch_size=0), "batch_size must .* at least 1, got 0"),
    (lambda it: tl.train_head(it.model, it.data.train, epochs=1.5), "epochs must be a whole number .* got 1.5"),
    (
        lambda it: tl.train_head(it.model, it.data.train, learning_rate=keras.optimizers.schedules.CosineDecay(1, 9)),
        r"learning_rate must be a number in \(0, inf\), got <.*CosineDecay",
    ),
    (lambda it: tl.Settings(label_smoothing="0.1"), r"label_smoothing must be a number in \[0, 1\), got '0.1'"),
    (lambda it: tl.Split("0.2"), r"validation must be a number in \(0, 1\), got '0.2'"),
    (lambda it: tl.load_backbone(["MobileNetV2"]), r"There is no backbone \['MobileNetV2'\]: did you mean MobileNet"),
    (lambda it: tl.advise(it.data, it.backbone, budget="60"), r"budget must be a number in \(0, inf\], got '60'"),
    (lambda it: tl.probe(it.features, num_resamples=1), "num_resamples must be a whole number of at least 2, got 1"),
    (lambda it: tl.pretrain(it.backbone, it.images, tl.Rotation(), judge=it.images, settings=SHORT), "pair .* ndarray"),
]


@pytest.mark.parametrize(("mistake", "said"), MISTAKES, ids=[said for _, said in MISTAKES])
def test_the_wrong_kind_of_thing_is_refused_with_the_right_one(mistake, said, data, tiny_backbone, colour_pictures):
    images, labels = colour_pictures
    it = SimpleNamespace(
        data=data,
        images=images,
        labels=labels,
        backbone=tiny_backbone,
        model=tl.build_classifier(tiny_backbone, 3),
        features=tl.extract_features(tiny_backbone, data.ordered("train")),
    )
    with pytest.raises(ValueError, match=said):
        mistake(it)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stages": "nope"}, "cannot unfreeze 'nope'"),
        ({"stages": ["nope"]}, "has no stage 'nope'"),
        ({"stages": 0}, "stages=0 leaves nothing to fine-tune"),
        ({"augment": "strong"}, "augment is None, \"light\" or a Keras layer, not 'strong'"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_trained(data, monkeypatch, options, said):
    for name in ("probe_head", "train_head"):
        monkeypatch.setattr(f"tlkeras.recipes.{name}", lambda *_, **__: pytest.fail("something was trained first"))
    for strategy in ("probe+fine-tune", "fine-tune"):
        with pytest.raises(ValueError, match=said):
            transfer(data, make_tiny_backbone(), strategy=strategy, settings=QUIET, **options)


@pytest.mark.parametrize(("room", "epochs"), [(0, 8), (1, 8), (10**9, 3)])
def test_the_epochs_are_those_of_the_views_that_find_room(data, monkeypatch, room, epochs):
    """36 pictures in batches of 32 may be as many as 64, for all that is known of a pipeline; 24 are held out."""
    numbers = 4 * 8 * 16 * 16  # bytes of a picture at the cut below two stages of three
    monkeypatch.setattr("tlkeras.features.CACHE_LIMIT", room if room != 1 else numbers * (4 * 36 + 24))
    result = transfer(data, make_tiny_backbone(), stages=2, settings=Settings(verbose=0, patience=None))
    assert sum(row["phase"] == "fine-tune" for row in result.history.rows) == epochs
