"""Claims about augmentation: what it changes, how far, and when it does not."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from test_data import digests, images, load, pixels

from tlkeras.augmentation import change_batch, light_augmentation
from tlkeras.loaders import load_arrays


@pytest.mark.parametrize("augment", ["light", keras.layers.RandomFlip("horizontal", seed=1), light_augmentation(2)])
def test_two_epochs_differ_in_augmentation_and_stay_in_range(insects, augment):
    data = load(insects).augmented(augment)
    first, second = images(data.train), images(data.train)
    plain = {digest: True for digest in digests(data.ordered("train"))}
    assert set(digests(data.train)) != set(digests(data.train))
    assert not set(digests(data.train)) <= set(plain)
    assert first.dtype == second.dtype == np.float32 and first.min() >= 0 and first.max() <= 255.01


def test_light_augmentation_mirrors_half_and_moves_a_tenth_at_most():
    ramp = np.tile(np.linspace(0, 255, 64, dtype=np.float32)[None, None, :, None], (400, 64, 1, 3))
    data = load_arrays(ramp + np.random.default_rng(0).random((400, 1, 1, 1)) * 1e-3 * (ramp < 254), [0, 1] * 200)
    seen = images(data.augmented("light").train)[:, 32, :, 0]
    rising = seen[:, -1] > seen[:, 0]
    assert 0.4 < rising.mean() < 0.6
    span = np.abs(seen[:, -1] - seen[:, 0]) / 255
    assert 0.79 < span.min() < 0.83 and 0.97 < span.max() <= 1.001
    assert np.abs(seen.mean(axis=1) / 255 - 0.5).max() < 0.105


def test_layers_inside_a_model_augment_in_training_only():
    layers = light_augmentation(3)
    batch = pixels(4).astype("float32")
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layers(batch, training=False)), batch)
    assert np.abs(keras.ops.convert_to_numpy(layers(batch, training=True)) - batch).max() > 1


class OneOf(keras.layers.Layer):
    """Another layer for each batch, as some libraries of augmentation have it."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def build(self, shape):
        """The layers inside have no weights."""

    def call(self, images):
        return self.layers[0](images)


def test_a_layer_of_layers_is_called_itself_and_a_chain_link_by_link():
    data = load_arrays(pixels(20), [0, 1] * 10)
    ten, more = keras.layers.Rescaling(0.0, offset=10.0), keras.layers.Rescaling(1.0, offset=5.0)
    assert np.unique(images(data.augmented(OneOf([ten, more])).train)) == [10]
    chain = keras.Sequential([ten, keras.Sequential([more])])
    assert np.unique(images(data.augmented(chain).train)) == [15]


@pytest.mark.parametrize("kind", [name for name in ("MixUp", "CutMix") if hasattr(keras.layers, name)])
def test_layers_that_change_labels_too_are_refused(kind):
    layer = getattr(keras.layers, kind)()
    for augment in (layer, keras.Sequential([layer])):
        with pytest.raises(ValueError, match="changes labels too"):
            change_batch(augment)
