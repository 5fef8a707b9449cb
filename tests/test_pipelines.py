import keras
import numpy as np
import pytest
from conftest import make_tiny_backbone

from tlkeras.features import extract_features
from tlkeras.freezing import unfreeze_top
from tlkeras.heads import build_classifier
from tlkeras.loaders import load_arrays
from tlkeras.pipelines import make_batches, without_autotuning
from tlkeras.pretexts import Rotation
from tlkeras.pretraining import Pretraining, pretrain
from tlkeras.settings import Settings
from tlkeras.training import fine_tune, train_head


def test_batches_come_in_order_or_shuffled_anew_in_each_pass():
    values, labels = np.arange(20.0).reshape(10, 2), np.arange(10)

    def passed(batches):
        pairs = [(x.numpy(), y.numpy()) for x, y in batches]
        assert all(np.array_equal(x, values[y]) and x.dtype == np.float32 for x, y in pairs)
        return np.concatenate([y for _, y in pairs])

    assert np.array_equal(passed(make_batches(values, labels, batch_size=4)), labels)
    shuffled = make_batches(values, labels, batch_size=4, seed=1)
    first, second = passed(shuffled), passed(shuffled)
    assert sorted(first) == sorted(second) == list(labels)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, passed(make_batches(values, labels, batch_size=4, seed=1)))
    assert len(shuffled) == 3


@pytest.mark.parametrize(("images", "labels"), [(3, 2), (0, 0)])
def test_images_and_one_label_for_each_are_asked_for(images, labels):
    with pytest.raises(ValueError, match=f"one label an image; got {images} images and {labels} labels"):
        make_batches(np.zeros((images, 4)), np.zeros(labels), seed=0)


def test_what_is_no_dataset_stays_as_it_is():
    batches = [(np.zeros(2), np.zeros(2))]
    assert without_autotuning(batches) is batches


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="other backends train on arrays")
@pytest.mark.parametrize("given", ["ours", "a user's"])
def test_no_pass_over_the_data_waits_for_the_autotuner(monkeypatch, colour_pictures, given):
    import tensorflow as tf

    images, labels = colour_pictures
    data = load_arrays(images, labels)
    train, validation = data.train, data.validation
    if given == "a user's":
        train = validation = tf.data.Dataset.from_tensor_slices((images.astype("float32"), labels)).batch(20)
    passes, iterate = [], tf.data.Dataset.__iter__

    def watched(self):
        passes.append(self.options().autotune.enabled)
        return iterate(self)

    backbone = make_tiny_backbone()
    model = build_classifier(backbone, 3)
    monkeypatch.setattr(tf.data.Dataset, "__iter__", watched)
    train_head(model, train, validation, epochs=2, settings=Settings(verbose=0))
    unfreeze_top(model, 1)
    for views in (0, 1):
        fine_tune(model, train, validation, epochs=2, settings=Settings(verbose=0, views=views))
    extract_features(backbone, train)
    assert len(passes) > 10
    assert passes.count(False) == len(passes)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="other backends train on arrays")
def test_pretraining_does_not_wait_for_the_autotuner(monkeypatch, colour_pictures):
    import tensorflow as tf

    fit, seen = keras.Model.fit, []
    monkeypatch.setattr(keras.Model, "fit", lambda self, data, **rest: (seen.append(data), fit(self, data, **rest))[1])
    settings = Pretraining(steps=2, batch_size=8, checks=1, verbose=0)
    pretrain(make_tiny_backbone(), colour_pictures[0], Rotation(), settings=settings)
    assert isinstance(seen[0], tf.data.Dataset)
    assert seen[0].options().autotune.enabled is False
