"""Backbones: pretrained nets without their top, and the one way to load them.

A backbone takes raw RGB pictures in [0, 255]; the preprocessing that its weights were trained with lies inside it, so
it cannot be forgotten or applied twice.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tlkeras.arguments import real_number, whole_number
from tlkeras.blueprints import Blueprint
from tlkeras.catalogue import CATALOGUE, Entry, find_entry
from tlkeras.kerashub import HUB_PREFIX, build_preset
from tlkeras.modelcard import fill_from_folder, read_model_card
from tlkeras.registry import fetch_backbone, is_saved_backbone
from tlkeras.weights import choose_weights, fill_weights, find_weights

# Each is one Rescaling(scale, offset) of the channels; "caffe" turns RGB to BGR before. Equal to Keras's own
# `preprocess_input`, and unlike it saved with the model.
_MEAN, _DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
RESCALING = {
    "tf": (1 / 127.5, -1.0),
    "torch": ((1 / (255 * _DEVIATION)).tolist(), (-_MEAN / _DEVIATION).tolist()),
    "caffe": (1.0, [-103.939, -116.779, -123.68]),
}


@dataclass(frozen=True)
class Backbone:
    """A net without its top, preprocessing inside, and the names of its stages.

    Attributes:
        name: its name in the catalogue, or that of a KerasHub preset.
        model: flat functional model, raw RGB in [0, 255] (batch, height, width, 3) to features (batch, h, w, c).
        weights: "imagenet", "embedded", "random", "preset", or the file or address of what filled it.
        image_size: height and width of the input in pixels.
        stages: layer names, first to last; the last one is the output.
        num_features: channels of the output.
        alpha: width multiplier, or None where the net has none.
    """

    name: str
    model: keras.Model
    weights: str
    image_size: int
    stages: tuple[str, ...]
    num_features: int
    alpha: float | None = None


class _Unbuilt(Backbone):
    """A backbone whose model is built when first asked for."""

    def __init__(self, blueprint: Blueprint | None = None, **fields):
        vars(self).update(fields, _blueprint=blueprint)

    def __repr__(self) -> str:
        return f"Backbone({', '.join(f'{name}={value!r}' for name, value in vars(self).items() if name[0] != '_')})"

    @property
    def blueprint(self) -> Blueprint | None:
        """What the model would be built from; None once it is built, since its weights may be others by now."""
        return None if "model" in vars(self) else self._blueprint

    @cached_property
    def model(self) -> keras.Model:
        return self._blueprint.build(vars(self))

    @cached_property
    def num_features(self) -> int:
        return self.model.output_shape[-1]


def list_backbones() -> list[str]:
    """Names of all backbones that `load_backbone` knows; `CATALOGUE[name]` tells more about one.

    Example:
    >>> "MobileNetV2" in list_backbones()
    True
    """
    return list(CATALOGUE)


def load_backbone(
    name: str | None = None,
    *,
    weights: str | os.PathLike | None = "imagenet",
    image_size: int | None = None,
    alpha: float | None = None,
    channels: int | None = None,
    build: bool = True,
) -> Backbone:
    """A pretrained net without its top that takes raw pictures in [0, 255].

    Do not call `preprocess_input` on what goes in: a net fed twice-scaled pictures trains without complaint, wrongly.

    Args:
        name: one of `list_backbones()`, MobileNetV2 by default; or "hub:PRESET", a KerasHub preset or the folder of one
            (`pip install keras-hub`), with the preset's own weights unless they are None.
        weights: "imagenet" (from the Keras cache, else downloaded into it; KERAS_HOME says where it is), "embedded"
            (carried by this package: MobileNetV2 at alpha 0.35, trained at 96 pixels), "auto" (ImageNet where in
            reach, else another width in the cache, else embedded whatever the name: one logged line says so), a file
            (.h5, .weights.h5, .keras, .npz), the folder or address of a saved backbone (`save_backbone`,
            `fetch_backbone`; its card gives name, width and size), or None: random.
        image_size: height and width in pixels; by default the net's own, mostly 224.
        alpha: width multiplier of the MobileNets; by default the width of the weights (1.0 for "imagenet").
        channels: 3 for RGB; 1 for grey pictures (batch, height, width, 1), repeated over three channels. By default
            those of the saved backbone, else 3.
        build: False leaves a net with weights (TensorFlow, float32) unbuilt until its `model` or `num_features` is
            asked for: if this machine ran it by OpenVINO before, its features come from the kept engine, which saves
            most of a second a process. A file that does not fit shows when the net is built.

    Returns:
        The backbone; its weights are trainable until you freeze them.

    Raises:
        ValueError: the name, the size, the width or the channels do not exist, or the file does not fit the net.
        ArtifactError: a saved backbone was changed, is unsafe or no longer answers as when it was saved.
        WeightsNotFoundError: the weights are neither on this machine nor to be had from the network.

    Example:
    >>> backbone = load_backbone("MobileNetV2", weights=None, image_size=96, alpha=0.35)
    >>> backbone.model.output_shape
    (None, 3, 3, 1280)
    """
    image_size = None if image_size is None else whole_number("image_size", image_size)
    alpha = None if alpha is None else round(real_number("alpha", alpha, "(0, inf)"), 6)  # np.float32(0.35) is 0.35
    if str(name).startswith(HUB_PREFIX):
        return _load_preset(name, weights, image_size, alpha=alpha, channels=channels)
    folder = fetch_backbone(weights) if is_saved_backbone(weights) else None
    card = folder and read_model_card(folder)
    if card:
        name, alpha = _agreed(card["net"], name, alpha)
        image_size = image_size or card["net"]["image_size"]
        channels = card["net"]["channels"] if channels is None else channels
    channels = 3 if channels is None else channels
    name = "MobileNetV2" if name is None else name
    entry = find_entry(name)
    if channels not in (1, 3):
        raise ValueError(f"channels must be 3 (RGB) or 1 (grey), not {channels!r}.")
    if image_size is not None and image_size < entry.min_size:
        raise ValueError(f"{name} takes pictures of at least {entry.min_size} pixels, not image_size={image_size}.")
    if alpha is not None and not entry.alphas:
        with_width = ", ".join(other for other, row in CATALOGUE.items() if row.alphas)
        raise ValueError(f"{name} has no width to choose: leave alpha out, or take one of {with_width}.")
    if weights == "auto":
        weights, name, alpha = choose_weights(entry, alpha, image_size or entry.image_size)
        entry = CATALOGUE[name]
    size = image_size or entry.image_size
    file, label = None, os.fspath(weights) if card else "random"
    if not card and weights is not None:
        file, alpha, label = find_weights(entry, weights, alpha, size)
    alpha = 1.0 if alpha is None else alpha
    known = dict(name=name, weights=label, image_size=size, stages=entry.stages, alpha=alpha if entry.alphas else None)
    if card:
        model = fill_from_folder(lambda size, channels: _build(entry, size, alpha, channels), folder, card)
        if (size, channels) != (card["net"]["image_size"], card["net"]["channels"]):
            proved, model = model, _build(entry, size, alpha, channels)
            model.set_weights(proved.get_weights())
    elif file and not build and Blueprint.can_wait():
        make = partial(_build, entry, size, alpha, channels)
        return _Unbuilt(Blueprint(make, file, entry, alpha, size, channels), **known)
    else:
        model = _build(entry, size, alpha, channels, file)
    return Backbone(model=model, num_features=model.output_shape[-1], **known)


def small_backbone(image_size: int = 32, *, width: int = 32, num_stages: int = 4) -> Backbone:
    """A plain convolutional net with random weights, small enough to be pretrained within a minute on a CPU.

    Use it to try a way of pretraining; for anything else the nets of `load_backbone` are better. Each stage halves the
    side by one 3 x 3 convolution with batch norm and a ReLU, and has twice the channels of the one before.

    Args:
        image_size: height and width in pixels.
        width: channels of the first stage.
        num_stages: how many.

    Returns:
        A backbone named "SmallCNN".

    Raises:
        ValueError: the stages would leave less than one pixel, or a number is below 1.

    Example:
    >>> small_backbone(32).model.output_shape
    (None, 2, 2, 256)
    """
    if width < 1 or num_stages < 1 or image_size < 2**num_stages:
        raise ValueError(
            f"{num_stages} stages halve the side as often: take image_size of {2 ** max(num_stages, 1)} or more and a "
            f"width above 0; received image_size={image_size}, width={width}."
        )
    layers = keras.layers
    image = keras.Input((image_size, image_size, 3), name="image")
    x = layers.Identity(name="augmentation")(image)  # the place that `build_classifier` fills
    x = layers.Rescaling(*RESCALING["tf"], name="preprocess_rescaling")(x)
    stages = tuple(f"stage_{k}" for k in range(1, num_stages + 1))
    for k, stage in enumerate(stages):
        x = layers.Conv2D(width * 2**k, 3, strides=2, padding="same", use_bias=False, name=f"{stage}_conv")(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"{stage}_norm")(x)
        x = layers.ReLU(name=stage)(x)
    return Backbone("SmallCNN", keras.Model(image, x, name="smallcnn"), "random", image_size, stages, x.shape[-1])


def _agreed(net: dict[str, Any], name: str | None, alpha: float | None) -> tuple[str, float | None]:
    """Name and width that a card gives; those asked for must be the same."""
    for key, asked in (("name", name), ("alpha", alpha)):
        if asked is not None and asked != net[key]:
            raise ValueError(f"The saved backbone has {key} {net[key]!r}, not {asked!r}: leave {key} out.")
    return net["name"], net["alpha"]


def _load_preset(
    name: str, weights: Any, image_size: int | None, *, alpha: float | None, channels: int | None
) -> Backbone:
    if alpha is not None or channels not in (None, 3):
        raise ValueError(f"{name} is a KerasHub preset for RGB pictures: leave alpha and channels out.")
    if weights not in ("imagenet", "auto", None):  # the default and the command line's default
        raise ValueError(f"{name} brings its own weights: leave weights out, or None for random ones.")
    model, stages = build_preset(name, image_size, load_weights=weights is not None)
    label = "random" if weights is None else "preset"
    return Backbone(model.name, model, label, model.input_shape[1], stages, model.output_shape[-1])


def stage_model(backbone: Backbone, stages: str | Sequence[str] = "all") -> keras.Model:
    """A model with one feature map per stage as output, in the order asked for.

    Use it to see what a net knows at every depth. It shares its weights with the backbone.

    Args:
        backbone: from `load_backbone`.
        stages: "all", or names out of `backbone.stages`.

    Returns:
        A model from pictures (batch, height, width, 3) in [0, 255] to a list of (batch, h, w, c).

    Raises:
        ValueError: a name is not a stage of this backbone, or there is none.
    """
    names = list(backbone.stages) if stages == "all" else [stages] if isinstance(stages, str) else list(stages)
    unknown = [stage for stage in names if stage not in backbone.stages]
    if unknown or not names:
        raise ValueError(f"{backbone.name} has the stages {', '.join(backbone.stages)}; received {unknown or 'none'}.")
    return keras.Model(backbone.model.input, [backbone.model.get_layer(stage).output for stage in names])


def _build(entry: Entry, size: int, alpha: float, channels: int, file: Path | None = None) -> keras.Model:
    """The net, filled by a file or at random, preprocessing in front, under names that no global counter can change."""
    image = keras.Input((size, size, channels), name="image")
    x = keras.layers.Identity(name="augmentation")(image)  # the place that `build_classifier` fills
    x = keras.layers.Concatenate(name="preprocess_widen")([x] * 3) if channels == 1 else x
    if entry.preprocessing == "caffe":
        x = keras.ops.flip(x, axis=-1)  # RGB to BGR
    if entry.preprocessing != "none":
        scale, offset = RESCALING[entry.preprocessing]
        x = keras.layers.Rescaling(scale, offset, name="preprocess_rescaling")(x)
    width = {"alpha": alpha} if entry.alphas else {}
    net = getattr(keras.applications, entry.name)(
        include_top=False, weights=None, input_tensor=x, input_shape=(size, size, 3), **width
    )
    if entry.learns_normalization:
        net = keras.models.clone_model(net, clone_function=_fix_normalization)
    _name_for_good(net, entry.name.lower())
    model = keras.Model(net.input[0] if isinstance(net.input, list) else net.input, net.output, name=entry.name.lower())
    if file:
        fill_weights(model, file, entry, alpha)
    return model


def _fix_normalization(layer: keras.Layer) -> keras.Layer:
    """Give EfficientNet's normalization its ImageNet statistics as constants.

    Keras keeps them as weights that a layer reads only when it is loaded from a file: a clone filled by `set_weights`
    would silently run without. And its files hold the deviation for the variance, which Keras mends by one more layer
    under weights="imagenet" only: a file loaded by its path would see pictures of half the contrast.
    """
    if isinstance(layer, keras.layers.Normalization):
        return keras.layers.Normalization(mean=_MEAN.tolist(), variance=(_DEVIATION**2).tolist(), name=layer.name)
    return type(layer).from_config(layer.get_config())


def _name_for_good(net: keras.Model, prefix: str) -> None:
    """Rename "add_3" and its like: Keras counts them over the process, so a second net would have other names."""
    counts: dict[str, int] = {}
    for operation in net.operations:
        kind = re.sub(r"_\d+$", "", operation.name)
        if kind.replace("_", "") == type(operation).__name__.lower():
            counts[kind] = counts.get(kind, 0) + 1
            operation.name = f"{prefix}_{kind}_{counts[kind]}"
