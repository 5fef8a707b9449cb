"""Pretexts: tasks whose answers need nobody to write them down, so that a network can be pretrained without labels.

`prepare` sees all pictures once, `build` puts what the task needs on a backbone, `batch` makes inputs and targets of a
few pictures inside a tf.data pipeline, `loss` compares. Images are (batch, height, width, 3) in [0, 255].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import keras
import numpy as np

from tlkeras.backbones import Backbone, stage_model
from tlkeras.colours import hue_bins, lab_to_rgb, nearest_bin, rebalancing, rgb_to_lab
from tlkeras.embeddings import nt_xent, spread, vicreg_loss
from tlkeras.views import crop, two_views

MOST_CHANNELS = 128  # of a decoder's layers


class Pretext:
    """What all pretexts have; by itself it is no task.

    Attributes:
        embeds: Whether the outputs are embeddings, which can collapse; `spread` then measures them.
    """

    embeds: ClassVar[bool] = False

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """Look at all pictures once; get a target for each, int32 (pictures,), zeros where pictures are their own."""
        return np.zeros(len(images), "int32")

    def build(self, backbone: Backbone) -> keras.Model:
        """Get the backbone with the task's head on it; the backbone's weights are shared."""
        raise NotImplementedError

    def batch(self, images: Any, targets: Any, draw: Any) -> tuple[Any, Any]:
        """Get what goes in and what shall come out, from float32 images, their targets and two random integers."""
        raise NotImplementedError

    def loss(self, targets: Any, outputs: Any) -> Any:
        """Get the loss of a batch, a number."""
        raise NotImplementedError


@dataclass
class Labels(Pretext):
    """Supervised pretraining: the classes of the pictures, for contrast, or on fractals, whose labels cost nothing.

    Attributes:
        labels: Whole numbers from 0, one a picture.
        smallest: The smallest window of a picture, as a share of its area.
    """

    labels: np.ndarray = field(repr=False)
    smallest: float = 0.5

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """Get the labels."""
        labels = np.asarray(self.labels)
        if labels.shape != (len(images),) or labels.dtype.kind not in "iu" or labels.min() < 0:
            raise ValueError(f"{len(images)} pictures need as many labels from 0, got {labels.dtype} {labels.shape}.")
        self.num_classes = int(labels.max()) + 1
        return labels.astype("int32")

    def build(self, backbone: Backbone) -> keras.Model:
        """Put a dense layer on the pooled features."""
        logits = keras.layers.Dense(self.num_classes, name="pretext_logits")(_pooled(backbone))
        return keras.Model(backbone.model.inputs[0], logits)

    def batch(self, images: Any, targets: Any, draw: Any) -> tuple[Any, Any]:
        """Take windows."""
        return crop(images, draw, self.smallest), targets

    def loss(self, targets: Any, outputs: Any) -> Any:
        """Get the mean cross-entropy."""
        return keras.ops.mean(keras.losses.sparse_categorical_crossentropy(targets, outputs, from_logits=True))


@dataclass
class Rotation(Labels):
    """Which way is up: each picture is turned by 0, 90, 180 or 270 degrees, and the network says by which.

    Gidaris, Singh and Komodakis 2018, https://arxiv.org/abs/1803.07728. It can teach only where pictures have a way up,
    which photographs have and cells under a microscope have not.
    """

    labels: None = field(default=None, repr=False)
    num_classes: ClassVar[int] = 4

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """Refuse pictures that are not square, which a turn would betray."""
        if images.shape[1] != images.shape[2]:
            raise ValueError(f"Rotation takes square pictures, got {images.shape[1]} x {images.shape[2]} pixels.")
        return Pretext.prepare(self, images)

    def batch(self, images: Any, targets: Any, draw: Any) -> tuple[Any, Any]:
        """Take windows, each turned at random."""
        import tensorflow as tf

        images = crop(images, draw, self.smallest)
        turned = tf.stack([tf.image.rot90(images, turns) for turns in range(4)], axis=1)
        turns = tf.random.stateless_uniform(tf.shape(images)[:1], draw + 1, 0, 4, tf.int32)
        return tf.gather(turned, turns, batch_dims=1), turns


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

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """Count the colours."""
        self.bins = hue_bins(self.grid)
        some = images[np.linspace(0, len(images) - 1, min(len(images), 500)).astype(int), ::4, ::4]
        numbers = keras.ops.convert_to_numpy(nearest_bin(rgb_to_lab(some)[..., 1:], self.bins))
        frequency = np.bincount(numbers.ravel(), minlength=len(self.bins)) / numbers.size
        self.weights = rebalancing(frequency, self.rebalance)
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


@dataclass
class SimCLR(Pretext):
    """Two views of a picture are alike, those of different pictures are not: contrastive learning.

    Chen et al. 2020, https://arxiv.org/abs/2002.05709. All other pictures of the batch are the contrast, so it wants
    batches as large as the memory allows.

    Attributes:
        temperature: Of the softmax over similarities.
        smallest: The smallest window of a picture, as a share of its area.
        strength: Of the change of light and colours; whatever it is, a fifth of the views turn grey.
        width: Of the hidden layer of the projection, whose output has half of it.
    """

    temperature: float = 0.2
    smallest: float = 0.2
    strength: float = 0.5
    width: int = 256
    embeds: ClassVar[bool] = True

    def build(self, backbone: Backbone) -> keras.Model:
        """Put the projection on the pooled features: one hidden layer."""
        x = _dense_block(_pooled(backbone), self.width, "pretext_1")
        x = keras.layers.Dense(self.width // 2, name="pretext_projection")(x)
        return keras.Model(backbone.model.inputs[0], x)

    def batch(self, images: Any, targets: Any, draw: Any) -> tuple[Any, Any]:
        """Take two views of each picture."""
        import tensorflow as tf

        return two_views(images, draw, self.smallest, self.strength), tf.concat([targets, targets], axis=0)

    def loss(self, targets: Any, outputs: Any) -> Any:
        """Get `nt_xent`."""
        return nt_xent(outputs, self.temperature)

    def spread(self, outputs: np.ndarray) -> float:
        """Get how far the projections point in different directions; 1 if evenly in all."""
        return spread(outputs)


@dataclass
class VICReg(SimCLR):
    """Two views are alike, each feature varies, no two features say the same; needs no contrast, so no large batch.

    Bardes, Ponce and LeCun 2022, https://arxiv.org/abs/2105.04906.

    Attributes:
        invariance: Weight of the distance between views.
        variance: Weight of the hinge that keeps each feature's deviation at 1; at 0 the features collapse.
        covariance: Weight of the squared covariances.
    """

    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0

    def build(self, backbone: Backbone) -> keras.Model:
        """Put the expander on the pooled features: two hidden layers and one more."""
        x = _dense_block(_dense_block(_pooled(backbone), self.width, "pretext_1"), self.width, "pretext_2")
        x = keras.layers.Dense(self.width, name="pretext_projection")(x)
        return keras.Model(backbone.model.inputs[0], x)

    def loss(self, targets: Any, outputs: Any) -> Any:
        """Get `vicreg_loss`."""
        return vicreg_loss(outputs, self.invariance, self.variance, self.covariance)

    def spread(self, outputs: np.ndarray) -> float:
        """Get the mean deviation of an embedding's features, which `variance` keeps at 1."""
        return float(outputs.std(axis=0).mean())


def decoder(backbone: Backbone, size: tuple[int, int]) -> Any:
    """Get features at a larger size: back up the stages, each doubling the side and with the channels of its stage.

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


def _dense_block(x: Any, width: int, name: str) -> Any:
    x = keras.layers.Dense(width, use_bias=False, name=name)(x)
    x = keras.layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x)


def _pooled(backbone: Backbone) -> Any:
    return keras.layers.GlobalAveragePooling2D(name="pretext_pool")(backbone.model.output)
