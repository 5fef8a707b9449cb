"""Pretexts: tasks whose answers need nobody to write them down, so that a network can be pretrained without labels.

`prepare` sees all pictures once, `build` puts what the task needs on a backbone, `batch` makes inputs and targets of a
few pictures inside a tf.data pipeline, `loss` compares. Images are (batch, height, width, 3) in [0, 255].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import keras
import numpy as np

from tlkeras.arguments import real_number
from tlkeras.backbones import Backbone
from tlkeras.embeddings import nt_xent, spread, vicreg_loss
from tlkeras.views import crop, two_views


class Pretext(ABC):
    """What all pretexts have; by itself it is no task.

    Attributes:
        embeds: Whether the outputs are embeddings, which can collapse; `spread` then measures them.
        only_later: Names of attributes that training does not read: a run goes on whatever they are.
    """

    embeds: ClassVar[bool] = False
    only_later: ClassVar[tuple[str, ...]] = ()

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """Look at all pictures once; get a target for each, int32 (pictures,), zeros where pictures are their own."""
        return np.zeros(len(images), "int32")

    @abstractmethod
    def build(self, backbone: Backbone) -> keras.Model:
        """Get the backbone with the task's head on it; the backbone's weights are shared."""

    @abstractmethod
    def batch(self, images: Any, targets: Any, draw: Any) -> tuple[Any, Any]:
        """Get what goes in and what shall come out, from float32 images, their targets and two random integers."""

    @abstractmethod
    def loss(self, targets: Any, outputs: Any) -> Any:
        """Get the loss of a batch, a number."""


@dataclass
class Classes(Pretext):
    """What tasks have whose answer is one of several classes; `prepare` sets their number, `num_classes`.

    Attributes:
        smallest: The smallest window of a picture, as a share of its area, above 0 and up to 1.
    """

    smallest: float = field(default=0.5, kw_only=True)

    def __post_init__(self):
        """Refuse windows that cannot be."""
        real_number("smallest", self.smallest, "(0, 1]")

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
class Labels(Classes):
    """Supervised pretraining: the classes of the pictures, for contrast, or on fractals, whose labels cost nothing.

    Attributes:
        labels: Whole numbers from 0, one a picture.
    """

    labels: np.ndarray = field(repr=False)

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """Get the labels."""
        labels = np.asarray(self.labels)
        if labels.shape != (len(images),) or labels.dtype.kind not in "iu" or labels.min() < 0:
            raise ValueError(f"{len(images)} pictures need as many labels from 0, got {labels.dtype} {labels.shape}.")
        self.num_classes = int(labels.max()) + 1
        return labels.astype("int32")


@dataclass
class Rotation(Classes):
    """Which way is up: each picture is turned by 0, 90, 180 or 270 degrees, and the network says by which.

    Gidaris, Singh and Komodakis 2018, https://arxiv.org/abs/1803.07728. It can teach only where pictures have a way up,
    which photographs have and cells under a microscope have not.
    """

    num_classes: ClassVar[int] = 4

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """Refuse pictures that are not square, which a turn would betray."""
        if images.shape[1] != images.shape[2]:
            raise ValueError(f"Rotation takes square pictures, got {images.shape[1]} x {images.shape[2]} pixels.")
        return super().prepare(images)

    def batch(self, images: Any, targets: Any, draw: Any) -> tuple[Any, Any]:
        """Take windows, each turned at random."""
        import tensorflow as tf

        images = crop(images, draw, self.smallest)
        turned = tf.stack([tf.image.rot90(images, turns) for turns in range(4)], axis=1)
        turns = tf.random.stateless_uniform(tf.shape(images)[:1], draw + 1, 0, 4, tf.int32)
        return tf.gather(turned, turns, batch_dims=1), turns


@dataclass
class SimCLR(Pretext):
    """Two views of a picture are alike, those of different pictures are not: contrastive learning.

    Chen et al. 2020, https://arxiv.org/abs/2002.05709. All other pictures of the batch are the contrast, so it wants
    batches as large as the memory allows. Of the paper's views the blur is left out, light and colours change in every
    view and not in four of five, and no hue is turned.

    Attributes:
        temperature: Of the softmax over similarities.
        smallest: The smallest window of a picture, as a share of its area, above 0 and up to 1.
        strength: Of the change of light and colours; whatever it is, a fifth of the views turn grey.
        width: Of the hidden layer of the projection, whose output has half of it.
    """

    temperature: float = 0.2
    smallest: float = 0.2
    strength: float = 0.5
    width: int = 256
    embeds: ClassVar[bool] = True

    def __post_init__(self):
        """Refuse windows that cannot be, and a temperature that divides by nothing."""
        real_number("smallest", self.smallest, "(0, 1]")
        real_number("temperature", self.temperature, "(0, inf)")

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

    Bardes, Ponce and LeCun 2022, https://arxiv.org/abs/2105.04906, with the invariance divided by the number of an
    embedding's features (`vicreg_loss`).

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


def _dense_block(x: Any, width: int, name: str) -> Any:
    x = keras.layers.Dense(width, use_bias=False, name=name)(x)
    x = keras.layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x)


def _pooled(backbone: Backbone) -> Any:
    return keras.layers.GlobalAveragePooling2D(name="pretext_pool")(backbone.model.output)
