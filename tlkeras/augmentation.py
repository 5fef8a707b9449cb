"""Augmentation: training pictures changed at random, in the pipeline or inside a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

MIXING = ("MixUp", "CutMix")
WINDOW = 0.8  # the smallest side of the window that is kept, as a share of the picture's


def light_augmentation(seed: int = 0) -> keras.Sequential:
    """Get layers that mirror, zoom and shift a little, to put inside a model.

    Use it where the augmentation should travel with the model or run on the accelerator; `augment="light"` in
    `load_folder` does nearly the same in the pipeline, about six times faster on a CPU. Export the model without it.

    Args:
        seed: decides the sequence of changes.

    Returns:
        A keras.Sequential from (batch, height, width, 3) in [0, 255] to the same; it changes nothing at inference.
    """
    layers = keras.layers
    return keras.Sequential(
        [
            layers.RandomFlip("horizontal", seed=seed),
            layers.RandomZoom((WINDOW - 1, 0.0), fill_mode="reflect", seed=seed + 1),
            layers.RandomTranslation((1 - WINDOW) / 4, (1 - WINDOW) / 4, fill_mode="reflect", seed=seed + 2),
        ],
        name="light_augmentation",
    )


def change_batch(augment: str | keras.Layer | None) -> Callable[[Any, Any], Any] | None:
    """Get what augments a batch in tf.data: from images (batch, height, width, 3) and two random int64 to images.

    Args:
        augment: None, "light" or a Keras layer, as in `load_folder`.

    Returns:
        A function to float32 images in [0, 255]; None where nothing is to be changed.

    Raises:
        ValueError: when `augment` is none of these.
    """
    if augment is None:
        return None
    if augment == "light":
        return _light
    if not isinstance(augment, keras.Layer):
        raise ValueError(f'augment is None, "light" or a Keras layer, not {augment!r}.')
    layers = _links(augment)
    for layer in layers:
        if isinstance(layer, tuple(getattr(keras.layers, name) for name in MIXING if hasattr(keras.layers, name))):
            raise ValueError(
                f"{layer.name} changes labels too, which `augment` leaves alone: map it over `data.train` yourself."
            )
    generators = [getattr(layer, "generator", None) or getattr(layer, "seed_generator", None) for layer in layers]

    def change(images: Any, draw: Any) -> Any:
        import tensorflow as tf

        images = tf.cast(images, tf.float32)
        for number, (layer, generator) in enumerate(zip(layers, generators, strict=True)):
            if generator is not None and keras.backend.backend() == "tensorflow":
                generator.state.assign(tf.cast(draw + number, generator.state.dtype))
            images = layer(images, training=True)
        return tf.cast(images, tf.float32)

    return change


def _links(augment: keras.Layer) -> list[keras.Layer]:
    """The layers of a chain: a Sequential does not run inside tf.data on the JAX and torch backends, its layers do."""
    if not isinstance(augment, keras.Sequential | getattr(keras.layers, "Pipeline", keras.Sequential)):
        return [augment]
    return [link for layer in augment.layers for link in _links(layer)]


def _light(images: Any, draw: Any) -> Any:
    """Mirror and take a window, in one operation: about six times as fast as three Keras layers."""
    import tensorflow as tf

    count, size = tf.shape(images)[0], images.shape[1]
    random = tf.random.stateless_uniform((4, count), draw)
    side = WINDOW + (1 - WINDOW) * random[0]
    top, left = random[1] * (1 - side), random[2] * (1 - side)
    near, far = left, left + side
    mirrored = random[3] < 0.5
    first, last = tf.where(mirrored, far, near), tf.where(mirrored, near, far)
    boxes = tf.stack([top, first, top + side, last], axis=1)
    return tf.image.crop_and_resize(images, boxes, tf.range(count), (size, size))
