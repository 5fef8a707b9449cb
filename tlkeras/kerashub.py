"""Presets of KerasHub as backbones: raw pictures in, the preset's own preprocessing inside, its pyramid as stages.

KerasHub (https://keras.io/keras_hub/) downloads its presets itself, from Kaggle or the Hugging Face Hub, and opens them
by its own code: take only those that you trust. Nets that hide batch norm or dropout inside layers of their own
(MobileNet, EfficientNet, HGNetV2) are refused, because freezing could not reach it; so are those that give tokens
instead of maps.
"""

from __future__ import annotations

import re

import keras
import numpy as np

HUB_PREFIX = "hub:"


def build_preset(
    name: str, image_size: int | None, *, load_weights: bool = True
) -> tuple[keras.Model, tuple[str, ...]]:
    """Get a flat model of a KerasHub preset, from raw RGB in [0, 255] to features, and the names of its stages.

    Args:
        name: "hub:" and a preset, such as "hub:resnet_18_imagenet", or the folder of one.
        image_size: Height and width in pixels; by default those of the preset's image converter, or 224.
        load_weights: False for random ones.

    Raises:
        ImportError: If `keras_hub` is not installed.
        ValueError: If there is no such preset, or the net is none that can be frozen and cut here.
    """
    try:
        import keras_hub
    except ImportError as error:
        raise ImportError(f"{name} needs KerasHub: pip install keras-hub") from error
    preset = name.removeprefix(HUB_PREFIX)
    scale, offset, size = _preprocessing(preset, keras_hub)
    size = image_size or size or 224
    net = keras_hub.models.Backbone.from_preset(preset, load_weights=load_weights, image_shape=(size, size, 3))
    _refuse_unsuited(name, net)
    title = re.sub(r"\W+", "_", preset.rstrip("/\\").split("/")[-1]).strip("_") or "preset"
    image = keras.Input((size, size, 3), name="image")
    x = keras.layers.Identity(name="augmentation")(image)
    x = keras.layers.Rescaling(scale, offset, name="preprocess_rescaling")(x)
    made = {}

    def call(layer, *arguments, **options):
        made[layer.name] = layer(*arguments, **options)
        return made[layer.name]

    def copy(layer):  # `layer.output` means a layer's first call, so each must be new
        return type(layer).from_config(layer.get_config())

    keras.models.clone_model(net, input_tensors=x, clone_function=copy, call_function=call)
    model = keras.Model(image, made[_maker(net.output)], name=title)
    for layer in net.layers:
        if layer.weights:
            model.get_layer(layer.name).set_weights(layer.get_weights())
    pyramid = getattr(net, "pyramid_outputs", {})
    levels = sorted(pyramid, key=lambda level: int(re.sub(r"\D", "", level) or 0))
    stages = [_maker(pyramid[level]) for level in levels if _maker(pyramid[level]) in made]
    return model, tuple(dict.fromkeys([*stages, _maker(net.output)]))


def _preprocessing(preset: str, keras_hub) -> tuple[list[float], list[float], int | None]:
    """Scale and offset of each channel, and the size in pixels, that a preset's pictures are prepared with."""
    try:
        converter = keras_hub.layers.ImageConverter.from_preset(preset)
    except (ValueError, FileNotFoundError, KeyError) as error:
        raise ValueError(
            f"The KerasHub preset {preset!r} has no image converter that can be read, so nobody knows how its pictures "
            f"are prepared ({' '.join(str(error).split())[:300]})."
        ) from error
    scale = 1.0 if converter.scale is None else converter.scale
    offset = 0.0 if converter.offset is None else converter.offset
    size = converter.image_size and converter.image_size[0]
    return *(np.broadcast_to(np.asarray(value, float), 3).tolist() for value in (scale, offset)), size


def _refuse_unsuited(name: str, net: keras.Model) -> None:
    shape = getattr(net.output, "shape", ())
    if len(shape) != 4 or keras.config.image_data_format() != "channels_last":
        raise ValueError(
            f"{name} gives no feature map (batch, height, width, channels) but {shape or 'several outputs'}."
        )
    top = {id(layer) for layer in net.layers}
    for layer in net._flatten_layers(include_self=False):
        if id(layer) not in top and (isinstance(layer, keras.layers.BatchNormalization) or hasattr(layer, "rate")):
            raise ValueError(
                f"{name} hides {layer.name!r}, a {type(layer).__name__}, inside a layer of its own, where freezing "
                "cannot reach it. Take one that lays its layers open, such as ResNet, DenseNet or VGG; or the "
                "net of this name among list_backbones()."
            )


def _maker(tensor: keras.KerasTensor) -> str:
    """The name of the layer that made a tensor."""
    return tensor._keras_history.operation.name
