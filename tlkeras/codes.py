"""CNN codes: the two 4096-D dense layers of AlexNet and VGG, which the notes on feature extraction speak of.

Modern nets end in an average over the last feature map and have no such layers. A code is taken after its ReLU, because
the classifier above was trained on that; the values before it are at hand too, to see the difference.
"""

from __future__ import annotations

import os

import keras
import numpy as np

from tlkeras.backbones import RESCALING, Backbone
from tlkeras.catalogue import Entry, Width
from tlkeras.weights import find_weights

_VGG = "https://storage.googleapis.com/tensorflow/keras-applications/{0}/{0}_weights_tf_dim_ordering_tf_kernels.h5"
_HASHES = {"VGG16": "64373286793e3c8b2b4e3219cbf3544b", "VGG19": "cbe5617147190e668d6c5d5026f83318"}
_NUM_WEIGHTS = {"VGG16": 138_357_544, "VGG19": 143_667_240, "AlexNet": 56_868_224}  # VGG's with the classes on top
_CODES = ("fc1", "fc1_relu", "fc2", "fc2_relu")


def load_codes(name: str = "VGG16", *, weights: str | os.PathLike | None = "imagenet") -> Backbone:
    """Get a net with its dense layers and without its classes, for `extract_features(..., stages="fc2_relu")`.

    Its stages are those of the feature maps, then "fc1", "fc1_relu", "fc2" and "fc2_relu", 4096 values each, before and
    after the ReLU. The image size is the one that the dense layers were made for: 224, AlexNet's 227.

    Args:
        name: "VGG16", "VGG19", or "AlexNet" in the layout of Krizhevsky and others (2012,
            https://papers.nips.cc/paper/4824), two groups and local response normalisation included.
        weights: "imagenet" (VGG; about 550 MB, from the Keras cache or downloaded), a file of weights, or None: random.
            For VGG a file of `keras.applications` with its top, for AlexNet one that `model.save_weights` wrote: Keras
            publishes none for it.

    Returns:
        A `Backbone` of which only features can be taken: `build_classifier` wants a feature map.

    Raises:
        ValueError: If the name is unknown, or the file does not fit the net.
        WeightsNotFoundError: If the weights are neither on this machine nor to be had from the network.
    """
    if name not in _NUM_WEIGHTS:
        raise ValueError(f"name must be one of {', '.join(map(repr, _NUM_WEIGHTS))}, got {name!r}.")
    size = 227 if name == "AlexNet" else 224
    image = keras.Input((size, size, 3), name="image")
    x = keras.layers.Identity(name="augmentation")(image)
    scale, offset = RESCALING["caffe"]
    x = keras.layers.Rescaling(scale, offset, name="preprocess_rescaling")(keras.ops.flip(x, axis=-1))  # RGB to BGR
    maps, stages = _alexnet(x) if name == "AlexNet" else _vgg(x, name)
    x = keras.layers.Flatten(name="flatten")(maps)
    for layer in ("fc1", "fc2"):
        x = keras.layers.Dense(4096, name=layer)(x)
        x = keras.layers.ReLU(name=f"{layer}_relu")(x)
    model = keras.Model(image, x, name=name.lower())
    label = "random"
    if weights is not None:
        label = _fill(model, name, weights)
    return Backbone(name, model, label, size, (*stages, *_CODES), 4096)


def _vgg(x, name: str) -> tuple[object, tuple[str, ...]]:
    net = getattr(keras.applications, name)(include_top=False, weights=None, input_tensor=x)
    return net.output, tuple(f"block{k}_pool" for k in range(1, 6))


def _alexnet(x) -> tuple[object, tuple[str, ...]]:
    """The five convolutions; (batch, 227, 227, 3) to (batch, 6, 6, 256)."""

    def convolve(x, filters: int, kernel: int, name: str, *, strides: int = 1, groups: int = 1):
        padding = "valid" if strides > 1 else "same"
        options = {"strides": strides, "padding": padding, "activation": "relu"}
        if groups == 1:
            return keras.layers.Conv2D(filters, kernel, name=name, **options)(x)
        # Two halves, as on the paper's two graphics cards; written out, since not every CPU trains grouped kernels.
        half = x.shape[-1] // 2
        parts = [x[..., :half], x[..., half:]]
        parts = [
            keras.layers.Conv2D(filters // 2, kernel, name=f"{name}_{k}", **options)(part)
            for k, part in enumerate(parts, 1)
        ]
        return keras.layers.Concatenate(name=name)(parts)

    x = LocalResponseNormalization(name="norm1")(convolve(x, 96, 11, "conv1", strides=4))
    x = keras.layers.MaxPooling2D(3, 2, name="pool1")(x)
    x = LocalResponseNormalization(name="norm2")(convolve(x, 256, 5, "conv2", groups=2))
    x = keras.layers.MaxPooling2D(3, 2, name="pool2")(x)
    x = convolve(x, 384, 3, "conv3")
    x = convolve(x, 384, 3, "conv4", groups=2)
    x = convolve(x, 256, 3, "conv5", groups=2)
    return keras.layers.MaxPooling2D(3, 2, name="pool5")(x), ("pool1", "pool2", "conv3", "conv4", "pool5")


@keras.saving.register_keras_serializable("tlkeras")
class LocalResponseNormalization(keras.layers.Layer):
    """Each value divided by a power of the squares of its neighbours along the channels (AlexNet's paper, 3.3)."""

    def __init__(self, depth: int = 5, alpha: float = 1e-4, beta: float = 0.75, bias: float = 2.0, **options):
        """Take the paper's n, alpha, beta and k."""
        super().__init__(**options)
        self.depth, self.alpha, self.beta, self.bias = depth, alpha, beta, bias

    def call(self, x):
        """Get the normalised values, of the same shape."""
        reach, channels = self.depth // 2, x.shape[-1]
        wide = keras.ops.cast(x, "float32")  # the square of 256 overflows in float16
        squares = keras.ops.pad(keras.ops.square(wide), [[0, 0], [0, 0], [0, 0], [reach, reach]])
        total = sum(squares[..., k : k + channels] for k in range(self.depth))
        return keras.ops.cast(wide / (self.bias + self.alpha * total) ** self.beta, x.dtype)

    def compute_output_shape(self, input_shape):
        """Get the input's shape."""
        return input_shape

    def get_config(self):
        """Get what `from_config` needs."""
        return {**super().get_config(), "depth": self.depth, "alpha": self.alpha, "beta": self.beta, "bias": self.bias}


def _fill(model: keras.Model, name: str, weights: str | os.PathLike) -> str:
    url = _VGG.format(name.lower())
    width = Width(_NUM_WEIGHTS[name], os.path.basename(url), url, _HASHES.get(name))
    if name == "AlexNet" and weights in ("imagenet", "embedded"):
        raise ValueError("Keras publishes no weights for AlexNet: pass weights=PATH of a file that fits, or None.")
    entry = Entry(name, "caffe", 224, 224, None, False, (), (224,), {1.0: width})
    file, _, label = find_weights(entry, weights, 1.0, 224)
    try:
        if name == "AlexNet" or str(file).endswith((".weights.h5", ".keras")):
            model.load_weights(file)
            return label
        whole = getattr(keras.applications, name)(weights=None)
        whole.load_weights(file)
    except Exception as error:  # Keras and h5py each have their own
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{file} does not fit {name} with its dense layers: {reason}") from None
    for layer in model.layers:
        if layer.weights:
            layer.set_weights([np.asarray(w) for w in whole.get_layer(layer.name).get_weights()])
    return label
