"""Reconstruction: pretexts that draw the picture again, or its colours, by a decoder that mirrors the backbone.

Images are (batch, height, width, 3) in [0, 255].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import keras
import numpy as np

from tlkeras.backbones import Backbone, stage_model
from tlkeras.colours import hue_bins, lab_to_rgb, nearest_bin, rebalancing, rgb_to_lab
from tlkeras.pretexts import Pretext
from tlkeras.views import crop

MOST_CHANNELS = 128  # of a decoder's layers
PIECE = 10  # pictures whose colours are held against all bins at once: 17 MB at 160 pixels


@dataclass
class Autoencoder(Pretext):
    """The picture itself, through all stages and back up a mirrored decoder; the loss is the mean squared error.

    With `noise` the input is spoilt and the clean picture asked for: a denoising autoencoder (Vincent et al. 2008,
    https://doi.org/10.1145/1390156.1390294).

    Attributes:
        noise: Standard deviation of what is added to the input, in levels of [0, 255]; 0 is a plain autoencoder.
    """

    noise: float = 0.0

    def build(self, backbone: Backbone) -> keras.Model:
        """Put a mirrored decoder on the last stage."""
        height, width = backbone.model.input_shape[1:3]
        x = keras.layers.Conv2D(3, 3, padding="same", name="pretext_picture")(decoder(backbone, (height, width)))
        return keras.Model(backbone.model.inputs[0], x)

    def batch(self, images: Any, targets: Any, draw: Any) -> tuple[Any, Any]:
        """Take windows; spoil the input."""
        import tensorflow as tf

        clean = crop(images, draw, 0.5)
        spoilt = clean + self.noise * tf.random.stateless_normal(tf.shape(clean), draw + 1) if self.noise else clean
        return tf.clip_by_value(spoilt, 0.0, 255.0), clean / 255

    def loss(self, targets: Any, outputs: Any) -> Any:
        """Get the mean squared error."""
        return keras.ops.mean(keras.ops.square(targets - outputs))


@dataclass
class Colorization(Pretext):
    """Colours from a grey picture, as classes: bins of the ab plane, rare colours weighted up; a quarter of its side.

    Zhang, Isola and Efros 2016, https://arxiv.org/abs/1603.08511, with the nearest bin for their five.

    Attributes:
        grid: Side of a bin in units of a and b.
        rebalance: Share of the colours' own frequency in the weights; the rest is uniform. The paper has 0.5.
        temperature: Of the mean over bins that `colour` paints: 1 is the mean, towards 0 the mode. The paper has 0.38.
    """

    grid: int = 10
    rebalance: float = 0.5
    temperature: float = 0.38
    only_later: ClassVar[tuple[str, ...]] = ("temperature",)

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """Count the colours."""
        self.bins = hue_bins(self.grid)
        some = images[np.linspace(0, len(images) - 1, min(len(images), 500)).astype(int), ::4, ::4]
        counts = np.zeros(len(self.bins), int)
        for start in range(0, len(some), PIECE):
            numbers = nearest_bin(rgb_to_lab(some[start : start + PIECE])[..., 1:], self.bins)
            counts += np.bincount(keras.ops.convert_to_numpy(numbers).ravel(), minlength=len(self.bins))
        self.weights = rebalancing(counts / counts.sum(), self.rebalance)
        return super().prepare(images)

    def build(self, backbone: Backbone) -> keras.Model:
        """Put a decoder up to a quarter of the side on the last stage."""
        height, width = backbone.model.input_shape[1:3]
        x = decoder(backbone, (height // 4, width // 4))
        logits = keras.layers.Conv2D(len(self.bins), 1, name="pretext_colours")(x)
        return keras.Model(backbone.model.inputs[0], logits)

    def batch(self, images: Any, targets: Any, draw: Any) -> tuple[Any, Any]:
        """Take the colour away and ask for it."""
        import tensorflow as tf

        images = crop(images, draw, 0.5)
        small = tf.image.resize(images, (images.shape[1] // 4, images.shape[2] // 4), antialias=True)
        return tf.image.grayscale_to_rgb(tf.image.rgb_to_grayscale(images)), small

    def loss(self, targets: Any, outputs: Any) -> Any:
        """Get the cross-entropy, each place weighted by its colour's rarity."""
        ops = keras.ops
        bins = nearest_bin(rgb_to_lab(targets)[..., 1:], self.bins)
        each = keras.losses.sparse_categorical_crossentropy(bins, outputs, from_logits=True)
        return ops.mean(each * ops.take(ops.convert_to_tensor(self.weights), bins))

    def colour(self, model: keras.Model, images: np.ndarray) -> np.ndarray:
        """Paint grey pictures with the colours that a trained model gives them: float32 RGB in [0, 255].

        Args:
            model: `Pretrained.model`.
            images: (n, height, width, 3) in [0, 255]; their colours are taken away first.
        """
        ops = keras.ops
        grey = ops.image.rgb_to_grayscale(ops.convert_to_tensor(images, "float32"))
        grey = ops.repeat(grey, 3, axis=-1)
        shares = ops.softmax(ops.convert_to_tensor(model.predict(grey, verbose=0)) / self.temperature)
        ab = ops.image.resize(ops.matmul(shares, ops.convert_to_tensor(self.bins)), images.shape[1:3])
        return lab_to_rgb(ops.convert_to_numpy(ops.concatenate([rgb_to_lab(grey)[..., :1], ab], axis=-1)))


def decoder(backbone: Backbone, size: tuple[int, int]) -> Any:
    """Get features at a larger size: back up the stages, each of its stage's side and channels.

    Args:
        backbone: Whose last stage it starts from.
        size: Height and width to end at.
    """
    layers = keras.layers
    stages = [tuple(output.shape[1:]) for output in stage_model(backbone).outputs]
    sizes = {**{(h, w): c for h, w, c in stages}, tuple(backbone.model.input_shape[1:3]): stages[0][2]}
    x = backbone.model.output
    for number, (height, width) in enumerate(sorted(sizes)[1:]):
        if height > size[0]:
            break
        x = layers.Resizing(height, width, interpolation="nearest", name=f"pretext_up_{number}")(x)
        channels = min(sizes[height, width], MOST_CHANNELS)
        x = layers.Conv2D(channels, 3, padding="same", use_bias=False, name=f"pretext_conv_{number}")(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"pretext_norm_{number}")(x)
        x = layers.ReLU(name=f"pretext_relu_{number}")(x)
    return x if x.shape[1:3] == size else layers.Resizing(*size, interpolation="bilinear", name="pretext_fit")(x)
