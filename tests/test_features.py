import sqlite3

import keras
import numpy as np
import pytest
from conftest import make_tiny_backbone

from tlkeras.batches import check_batches, count_batches
from tlkeras.features import (
    compute_features,
    count_views,
    cut_point,
    extract_features,
    feature_model,
    top_model,
)
from tlkeras.freezing import unfreeze_top
from tlkeras.heads import build_classifier, build_head
from tlkeras.settings import Settings
from tlkeras.training import train_head


class Pictures(keras.utils.PyDataset):
    """Batches of arrays, in the form that works on every backend."""

    def __init__(self, images, labels, batch_size=16):
        super().__init__()
        self.images, self.labels, self.batch_size = images, labels, batch_size

    def __len__(self):
        return -(-len(self.images) // self.batch_size)

    def __getitem__(self, index):
        rows = slice(index * self.batch_size, (index + 1) * self.batch_size)
        return self.images[rows], self.labels[rows]


class Darken(keras.layers.Layer):
    """An augmentation without chance."""

    def call(self, images):
        return images / 2


@pytest.fixture
def data(colour_pictures):
    return Pictures(colour_pictures[0].astype("float32"), colour_pictures[1])


def test_features_are_the_pooled_output_of_the_backbone_in_the_order_of_the_batches(tiny_backbone, data):
    model = build_classifier(tiny_backbone, 3)
    features, labels = compute_features(model, data)
    expected = np.asarray(tiny_backbone.model(data.images)).mean(axis=(1, 2))
    np.testing.assert_allclose(features, expected, atol=1e-6)
    np.testing.assert_array_equal(labels, data.labels)
    assert features.dtype == "float32"


def test_the_first_view_is_plain_and_the_others_are_augmented(tiny_backbone, data):
    model = build_classifier(tiny_backbone, 3, augmentation=Darken())
    features, labels = compute_features(model, data, views=2)
    np.testing.assert_allclose(features[:60], np.asarray(feature_model(model)(data.images)), atol=1e-6)
    np.testing.assert_allclose(features[60:], np.asarray(feature_model(model)(data.images / 2)), atol=1e-6)
    np.testing.assert_array_equal(labels, np.tile(data.labels, 2))


def test_features_leave_live_batch_norm_alone(tiny_backbone, data):
    model = build_classifier(tiny_backbone, 3, augmentation=Darken())
    unfreeze_top(model, 3, batch_norm=True)
    before = model.get_weights()
    compute_features(model, data, views=2)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    ("head", "shape"),
    [
        (build_head(3, pooling="max"), (None, 16)),
        (keras.Sequential([keras.Input((4, 4, 16)), *build_head(3).layers]), (None, 16)),  # built in advance
        (build_head(3, pooling="flatten"), (None, 256)),
        (keras.Sequential([keras.layers.Conv2D(3, 4, name="pool"), keras.layers.Flatten()]), (None, 4, 4, 16)),
    ],
)
def test_features_end_where_the_heads_first_weights_begin(head, shape):
    model = build_classifier(make_tiny_backbone(), 3, head=head)
    assert feature_model(model).output_shape == shape
    assert top_model(model).input_shape == shape


@pytest.mark.parametrize(
    ("stages", "cut"), [(0, "pool"), (1, "drop_1"), (2, "drop_0"), (3, None), (0.2, "drop_1"), (0.5, "drop_0")]
)
def test_the_cut_is_the_last_stage_below_what_trains(tiny_backbone, data, stages, cut):
    model = build_classifier(tiny_backbone, 3)
    unfreeze_top(model, stages)
    assert cut_point(model) == cut
    assert count_views(model, 60, 60, views=2) == (2 if cut else 0)
    assert count_views(model, 10**9, views=2) == count_views(model, 60, 10**9, views=2) == 0  # would not fit
    if cut:
        features, _ = compute_features(model, data, layer=cut)
        expected = model.predict(data.images, verbose=0)
        np.testing.assert_allclose(np.asarray(top_model(model)(features)), expected, atol=1e-6)


def test_tf_data_and_py_datasets_are_counted_and_give_the_same_features(tiny_backbone, data):
    import tensorflow as tf

    model = build_classifier(tiny_backbone, 3)
    dataset = tf.data.Dataset.from_tensor_slices((data.images, data.labels)).batch(16)
    assert count_batches(dataset) == count_batches(data) == 4
    np.testing.assert_array_equal(compute_features(model, dataset)[0], compute_features(model, data)[0])


def make_bad_batches(kind, data):
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices((data.images, data.labels)).batch(16)
    return {
        "list": [data[0]],
        "arrays": (data.images, data.labels),
        "generator": (batch for batch in data),
        "empty": dataset.take(0),
        "endless": dataset.repeat(),
        "unknown": dataset.filter(lambda images, labels: True),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("list", "a torch DataLoader of .images, labels. batches, got list. For arrays: make_batches"),
        ("arrays", "got tuple"),
        ("generator", "got generator"),
        ("empty", "no batch"),
        ("endless", r"leave out `repeat\(\)`"),
        ("unknown", "assert_cardinality"),
    ],
)
def test_batches_that_cannot_be_gone_through_again_are_refused(tiny_backbone, data, kind, message):
    with pytest.raises(ValueError, match=message):
        compute_features(build_classifier(tiny_backbone, 3), make_bad_batches(kind, data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x / 255, r"raw, in \[0, 255\]; these lie in \[0, 0\.\d+\]"),
        (lambda x: x / 127.5 - 1, r"leave out `preprocess_input`"),
        (lambda x: x - 110, r"these lie in \[-110, "),
        (lambda x: x * 257, "any division by 255"),
        (lambda x: x * np.nan, "nan"),
        (lambda x: x[:, :16], r"takes pictures of shape \(None, 32, 32, 3\), got \(16, 16, 32, 3\)"),
        (lambda x: x[..., :1], r"got \(16, 32, 32, 1\)"),
    ],
)
def test_pictures_that_are_not_raw_are_refused(tiny_backbone, data, change, message):
    with pytest.raises(ValueError, match=message):
        check_batches(build_classifier(tiny_backbone, 3), Pictures(change(data.images), data.labels))


ONE_HOT = np.eye(3)[np.arange(60) % 3]


@pytest.mark.parametrize(
    ("task", "labels", "message"),
    [
        ("classification", np.full(60, 3), r"whole numbers from 0 to 2, \(pictures,\)"),
        ("classification", np.full(60, -1), "got int64 of shape"),
        ("classification", np.full(60, 0.5), "got float64"),
        ("classification", ONE_HOT, r"of shape \(16, 3\)"),
        ("classification", np.array(["cat"] * 60), "got <U3"),
        ("binary", np.full(60, 2), r"0 or 1, \(pictures,\)"),
        ("multi-label", np.zeros(60), r"0 or 1, \(pictures, 3\)"),
        ("multi-label", 2 * ONE_HOT, r"0 or 1, \(pictures, 3\)"),
        ("regression", np.zeros(60), r"finite numbers, \(pictures, 3\)"),
        ("regression", np.full((60, 3), np.nan), "finite numbers"),
    ],
)
def test_labels_that_do_not_fit_the_task_are_refused(tiny_backbone, data, task, labels, message):
    with pytest.raises(ValueError, match=f"Labels for {task} are .*{message}"):
        check_batches(build_classifier(tiny_backbone, 3, task=task), Pictures(data.images, labels))


@pytest.mark.parametrize(
    ("task", "num_classes", "labels"),
    [
        ("classification", 3, np.arange(60)[:, None] % 3),
        ("binary", 2, np.arange(60) % 2 == 0),
        ("multi-label", 3, ONE_HOT),
        ("regression", 1, np.linspace(-1, 1, 60)),
        ("regression", 3, ONE_HOT * 7),
    ],
)
def test_labels_that_fit_are_let_through_and_the_pictures_counted(tiny_backbone, data, task, num_classes, labels):
    model = build_classifier(tiny_backbone, num_classes, task=task)
    assert check_batches(model, Pictures(data.images, labels, batch_size=20)) == 60


def test_batches_must_be_pairs(tiny_backbone, data):
    import tensorflow as tf

    with pytest.raises(ValueError, match=r"pair \(images, labels\)"):
        check_batches(build_classifier(tiny_backbone, 3), tf.data.Dataset.from_tensor_slices(data.images).batch(16))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TLKERAS_CACHE", str(tmp_path))
    return tmp_path


def test_all_stages_come_from_one_pass_and_equal_those_taken_one_by_one(tiny_backbone, data):
    features = extract_features(tiny_backbone, data, stages="all")
    assert list(features.stages) == ["drop_0", "drop_1", "drop_2"] and features.computed == 60
    for name, values in features.stages.items():
        network = keras.Model(tiny_backbone.model.inputs[0], tiny_backbone.model.get_layer(name).output)
        expected = np.asarray(network(data.images)).mean(axis=(1, 2))
        np.testing.assert_allclose(values, expected, atol=1e-5)
    np.testing.assert_array_equal(features.last, features.stages["drop_2"])
    np.testing.assert_array_equal(features.labels, data.labels)


def test_whole_maps_keep_height_and_width(tiny_backbone, data):
    features = extract_features(tiny_backbone, data, stages=["drop_1"], pooled=False)
    assert features.last.shape == (60, 8, 8, 12)
    with pytest.raises(ValueError, match="whole maps would fill the disk"):
        extract_features(tiny_backbone, data, pooled=False, cache=True)


def test_a_classifier_gives_its_backbones_features(tiny_backbone, data):
    model = build_classifier(tiny_backbone, 3, augmentation=Darken())
    np.testing.assert_allclose(
        extract_features(model, data).last, extract_features(tiny_backbone, data).last, atol=1e-5
    )


def test_the_second_time_no_picture_goes_through_the_network(cache, tiny_backbone, data):
    first = extract_features(tiny_backbone, data, stages="all", cache=True)
    again = extract_features(tiny_backbone, data, stages="all", cache=True)
    assert (first.computed, again.computed) == (60, 0)
    for name, values in first.stages.items():
        np.testing.assert_array_equal(again.stages[name], values)
    fresh = extract_features(tiny_backbone, data, stages="all")
    np.testing.assert_allclose(again.last, fresh.last, atol=1e-6)


def test_a_changed_picture_is_computed_anew_and_no_other(cache, tiny_backbone, data):
    before = extract_features(tiny_backbone, data, cache=True).last
    data.images[17] = 255 - data.images[17]
    after = extract_features(tiny_backbone, data, cache=True)
    assert after.computed == 1
    assert np.flatnonzero(np.any(after.last != before, axis=1)).tolist() == [17]


def test_other_weights_and_other_stages_do_not_share_what_is_stored(cache, data):
    extract_features(make_tiny_backbone(), data, cache=True)
    assert extract_features(make_tiny_backbone(), data, cache=True).computed == 60
    assert extract_features(make_tiny_backbone(), data, stages="drop_0", cache=True).computed == 60


def test_a_run_that_was_killed_half_way_continues(cache, tiny_backbone, data):
    class Killed(Pictures):
        def __getitem__(self, index):
            if index == 3:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    with pytest.raises(KeyboardInterrupt):
        extract_features(tiny_backbone, Killed(data.images, data.labels), cache=True, engine="keras")
    assert extract_features(tiny_backbone, data, cache=True, engine="keras").computed <= 60 - 32


def test_an_unknown_stage_is_answered_with_those_there_are(tiny_backbone, data):
    with pytest.raises(ValueError, match="no layer .'drop_9'.*drop_0, drop_1, drop_2"):
        extract_features(tiny_backbone, data, stages=["drop_9"])


def test_a_store_that_breaks_midway_costs_time_only(cache, tiny_backbone, data, caplog):
    fresh = extract_features(tiny_backbone, data, cache=True).last
    with sqlite3.connect(cache / "features.sqlite") as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    file = cache / "features.sqlite"
    content = bytearray(file.read_bytes())
    content[4096 * 3 :] = bytes(len(content) - 4096 * 3)
    file.write_bytes(content)
    again = extract_features(tiny_backbone, data, cache=True)
    np.testing.assert_allclose(again.last, fresh, atol=1e-6)
    assert "computed and not kept" in caplog.text or again.computed == 60


def test_no_pictures_and_no_end_are_refused_before_anything_runs(tiny_backbone, data):
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices((data.images, data.labels)).batch(16)
    with pytest.raises(ValueError, match="is empty"):
        extract_features(tiny_backbone, dataset.take(0))
    with pytest.raises(ValueError, match="never ends"):
        extract_features(tiny_backbone, dataset.repeat())


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x / 255, r"raw, in \[0, 255\]; these lie in \[0, 0\.\d+\]"),
        (lambda x: x / 127.5 - 1, "leave out `preprocess_input`"),
        (lambda x: x[:, :16], r"takes pictures of shape \(None, 32, 32, 3\), got \(16, 16, 32, 3\)"),
        (lambda x: x[:, 0], r"got \(16, 32, 3\)"),
    ],
)
def test_features_of_pictures_that_are_not_raw_are_refused_as_in_training(
    cache, tiny_backbone, data, change, message, cached
):
    with pytest.raises(ValueError, match=message):
        extract_features(tiny_backbone, Pictures(change(data.images), data.labels), cache=cached)
    assert not (cache / "features.sqlite").exists()


@pytest.mark.parametrize("batch_size", [2, 16])
@pytest.mark.parametrize("engine", ["auto", "keras"])
def test_features_are_taken_of_pairs_only(tiny_backbone, data, batch_size, engine):
    import tensorflow as tf

    for parts in (data.images, (data.images, data.labels, data.labels)):
        batches = tf.data.Dataset.from_tensor_slices(parts).batch(batch_size)
        with pytest.raises(ValueError, match=r"pair \(images, labels\)"):
            extract_features(tiny_backbone, batches, engine=engine)


def test_each_batch_is_read_once(tiny_backbone, data):
    read = []

    class Counted(Pictures):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    extract_features(tiny_backbone, Counted(data.images, data.labels))
    assert sorted(read) == [0, 1, 2, 3]


class Endless(Pictures):
    """As `ImageDataGenerator.flow`: of known length, and its iterator begins again."""

    passes = 0

    def __iter__(self):
        while True:
            yield from (self[number] for number in range(len(self)))

    def on_epoch_end(self):
        self.passes += 1


def test_a_data_set_of_known_length_ends_whatever_its_iterator_does(tiny_backbone):
    images, labels = np.random.default_rng(0).uniform(0, 255, (20, 32, 32, 3)).astype("float32"), np.arange(20) % 2
    data = Endless(images, labels)
    assert np.array_equal(extract_features(tiny_backbone, data).labels, labels) and data.passes == 1
    model = build_classifier(tiny_backbone, 2)
    history = train_head(model, data, data, epochs=2, settings=Settings(verbose=0))
    assert len(history.rows) == 2
