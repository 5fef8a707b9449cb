"""Heads, and the classifier that joins one to a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from numbers import Integral

import keras

from tlkeras.arguments import real_number, whole_number
from tlkeras.backbones import Backbone

TASKS = ("classification", "binary", "multi-label", "regression", "detection")
AUGMENTATION = "augmentation"  # name of the layer that stands first in every model


@dataclass(frozen=True)
class Transfer:
    """What `build_classifier` knows of a model and `freeze`, `train_head` and `fine_tune` need; `model.transfer`.

    Attributes:
        backbone: Name in the catalogue.
        weights: Where the backbone's weights came from.
        image_size: Height and width in pixels of the pictures.
        stages: Names of the backbone's cut points that this model holds, first to last.
        backbone_layers: Names of all pretrained layers, in the order of the graph.
        head_layers: Names of the layers of the head; the first takes the backbone's feature map.
        task: One of "classification", "binary", "multi-label", "regression", "detection".
        alpha: Width of the backbone, where it has one.
    """

    backbone: str
    weights: str
    image_size: int
    stages: tuple[str, ...]
    backbone_layers: tuple[str, ...]
    head_layers: tuple[str, ...]
    task: str = "classification"
    alpha: float | None = None

    def to_dict(self) -> dict:
        """Get a dictionary that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> Transfer:
        """Get the `Transfer` back from `to_dict`'s result, lists turned into tuples again."""
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def build_head(
    num_outputs: int, *, hidden: Sequence[int] = (), dropout: float = 0.2, pooling: str = "avg"
) -> keras.Sequential:
    """Get a head: pooling over the feature map, hidden layers if any, dropout, and a dense layer of logits.

    The default, a linear classifier on averaged features, is right for most small sets. A hidden layer helps
    where there are thousands of pictures and overfits where there are hundreds.

    Args:
        num_outputs: Classes, labels or values to predict.
        hidden: Units of each ReLU layer between pooling and logits, for example `(256,)`.
        dropout: Share of the features dropped while training, in [0, 1).
        pooling: "avg", "max", or "flatten" (as VGG16 and AlexNet have it: many weights, one image size only).

    Returns:
        A `keras.Sequential` from (batch, height, width, channels) to logits (batch, num_outputs), without a
        softmax: losses are told so, and `predictions.predict` applies it.

    Raises:
        ValueError: If a count is not a whole number of 1 or more, dropout outside [0, 1) or pooling unknown.

    Examples:
    >>> [layer.name for layer in build_head(3, hidden=(64,)).layers]
    ['pool', 'hidden_1', 'dropout', 'logits']
    """
    if not isinstance(hidden, Sequence) or isinstance(hidden, str):
        raise ValueError(f"hidden lists the units of each layer, such as (256,), got {hidden!r}.")
    for name, value in [("num_outputs", num_outputs), *(("hidden", units) for units in hidden)]:
        whole_number(name, value, 1)
    real_number("dropout", dropout, "[0, 1)")
    pools = {
        "avg": keras.layers.GlobalAveragePooling2D,
        "max": keras.layers.GlobalMaxPooling2D,
        "flatten": keras.layers.Flatten,
    }
    if pooling not in pools:
        raise ValueError(f"pooling must be one of {', '.join(map(repr, pools))}, got {pooling!r}.")
    layers = [pools[pooling](name="pool")]
    layers += [keras.layers.Dense(units, activation="relu", name=f"hidden_{k + 1}") for k, units in enumerate(hidden)]
    layers += [keras.layers.Dropout(dropout, name="dropout")] if dropout else []
    # Logits stay float32 under mixed precision: a float16 softmax loses small probabilities.
    logits = keras.layers.Dense(int(num_outputs), dtype="float32", name="logits")
    return keras.Sequential([*layers, logits], name="head")


def build_classifier(
    backbone: Backbone,
    num_classes: int,
    *,
    task: str = "classification",
    head: keras.Layer | None = None,
    stage: str | int | None = None,
    augmentation: keras.Layer | None = None,
) -> keras.Model:
    """Get a model from raw pictures to logits: a copy of the backbone, frozen, and a new head.

    The graph is flat, so `model.get_layer("block_12_add")` works and so does Grad-CAM. It is a copy: train it
    as you like, `backbone` stays as it was loaded and the next classifier starts from the same weights.
    Dropout and stochastic depth inside the backbone are switched off, because a layer that is frozen does
    not stop dropping in `fit`; batch norm is in inference mode and stays so (see `freezing`).

    Args:
        backbone: From `load_backbone`.
        num_classes: Classes; labels of a multi-label task; values of a regression. Ignored for "binary".
        task: "classification" (integer labels), "binary" (labels 0 or 1, one logit), "multi-label" (0/1
            matrix), "regression" (floats) or "detection" (which wants a head: call `build_detector`).
        head: Any layer from the feature map to logits (batch, outputs); it is copied as well, with its weights if
            it has any. Default: `build_head(num_classes)`.
        stage: Where the head sits: a name from `backbone.stages`, or an index into it (-2 is the last but
            one). Default: the last. Layers above it are left out.
        augmentation: A layer applied to the raw pictures in training only, such as `light_augmentation()`.

    Returns:
        A `keras.Model`, not compiled, from (batch, height, width, 3) in [0, 255] to logits, with
        `model.transfer` set. The backbone's layers are frozen.

    Raises:
        ValueError: If the task or the stage is unknown, `num_classes` or the head does not fit the task, the head gives
            probabilities instead of logits, or head or augmentation are no layers.
        TypeError: If `backbone` did not come from `load_backbone`.
    """
    from tlkeras.freezing import freeze

    if not isinstance(backbone, Backbone):
        raise TypeError(f"backbone comes from load_backbone(name), got {type(backbone).__name__}.")
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(map(repr, TASKS))}, got {task!r}.")
    if task != "binary" and not isinstance(num_classes, Integral):
        raise ValueError(f"num_classes is a whole number, such as data.num_classes, got {type(num_classes).__name__}.")
    if task == "classification" and num_classes < 2:
        raise ValueError(f"A classification needs 2 or more classes, got {num_classes}. Is it task='binary'?")
    for name, layer, example in (("head", head, "build_head"), ("augmentation", augmentation, "light_augmentation")):
        if not isinstance(layer, keras.Layer | None):
            raise ValueError(f"{name} is a Keras layer, such as {example}(...), got {layer!r}.")
    num_outputs = 1 if task == "binary" else num_classes
    stages = _stages_up_to(backbone, stage)
    copy = _copy_graph(backbone.model, augmentation)
    inputs, features = copy.inputs[0], copy.get_layer(stages[-1]).output
    head = build_head(num_outputs) if head is None else head
    steps, outputs = [], features
    for layer in head.layers if isinstance(head, keras.Sequential) else [head]:
        # A copy also because `layer.output` means the first call, which may lie in another graph.
        steps.append(type(layer).from_config(layer.get_config()))
        outputs = steps[-1](outputs)
        if layer.weights:
            steps[-1].set_weights(layer.get_weights())
    shape = (None, *features.shape[1:3], num_classes + 4) if task == "detection" else (None, num_outputs)
    if tuple(outputs.shape) != shape:
        raise ValueError(f"The head gives {tuple(outputs.shape)}; task {task!r} wants {shape}.")
    if task != "regression" and _squashes(steps[-1]):
        raise ValueError(
            f"The head ends in probabilities ({steps[-1].name}), of which loss and predict() would take a softmax or "
            "sigmoid again: let its last layer have no activation."
        )
    model = keras.Model(inputs, outputs, name=f"{backbone.name}_classifier")
    kept = {id(layer) for layer in keras.Model(inputs, features).layers}
    model.transfer = Transfer(
        backbone=backbone.name,
        weights=backbone.weights,
        image_size=backbone.image_size,
        stages=stages,
        backbone_layers=tuple(
            layer.name
            for layer in model.layers
            if id(layer) in kept and layer.name != AUGMENTATION and not isinstance(layer, keras.layers.InputLayer)
        ),
        head_layers=tuple(layer.name for layer in steps),
        task=task,
        alpha=backbone.alpha,
    )
    freeze(model)
    return model


def _squashes(layer: keras.Layer) -> bool:
    """Whether a layer, or what a model used as one ends in, gives probabilities."""
    while isinstance(layer, keras.Model):
        ends = layer.layers[-1:]
        if not isinstance(layer, keras.Sequential):
            ends = [output._keras_history.operation for output in getattr(layer, "outputs", None) or ()]
        if not ends:  # a class of its own, which nobody can look into
            return False
        layer = ends[0]
    squashing = keras.activations.softmax, keras.activations.sigmoid
    return isinstance(layer, keras.layers.Softmax) or getattr(layer, "activation", None) in squashing


def _copy_graph(model: keras.Model, augmentation: keras.Layer | None) -> keras.Model:
    """Get a copy with weights of its own, `augmentation` in front, no dropout, and the dtype policy in force."""
    if model.layers[1].name != AUGMENTATION:
        raise ValueError(f"The backbone's first layer must be named {AUGMENTATION!r}, such as an Identity.")
    policy = keras.config.dtype_policy().name

    def clone(layer: keras.Layer) -> keras.Layer:
        if layer.name == AUGMENTATION:
            return Augmentation([] if augmentation is None else [augmentation], name=AUGMENTATION, dtype="float32")
        config = layer.get_config()
        if not isinstance(layer, keras.Layer):  # a bare operation, such as the flip from RGB to BGR
            return type(layer).from_config(config)
        if isinstance(layer, keras.Sequential):  # ConvNeXt's stem: its own layers have a precision each
            return keras.models.clone_model(layer, clone_function=clone)
        # A mean subtracted in float16 loses too much: preprocessing stays float32.
        prepares = isinstance(layer, keras.layers.Rescaling | keras.layers.Normalization)
        config["dtype"] = "float32" if prepares else policy
        for rate in {"rate", "drop_path_rate"} & set(config):
            config[rate] = 0.0
        return type(layer).from_config(config)

    copy = keras.models.clone_model(model, clone_function=clone)
    for old, new in zip(model.layers, copy.layers, strict=True):
        if old.name != AUGMENTATION and old.weights:
            new.set_weights(old.get_weights())
    return keras.Model(copy.inputs[0], copy.outputs[0], name=model.name)  # clone_model wraps the input in a list


@keras.saving.register_keras_serializable("tlkeras")
class Augmentation(keras.layers.Layer):
    """Layers that act in training only; in Keras a bare `RandomFlip` also flips in `model(pictures)`."""

    def __init__(self, layers: Sequence[keras.Layer] = (), **options):
        """Take the layers to apply in turn; none leaves the pictures as they are."""
        super().__init__(**options)
        self.steps = list(layers)

    def build(self, input_shape):
        """Build each step."""
        for layer in self.steps:
            if not layer.built:
                layer.build(input_shape)
        super().build(input_shape)

    def call(self, images, training=False):
        """Get the pictures, changed at random when `training`."""
        if not training:
            return images
        for layer in self.steps:
            images = layer(images, training=True)
        return images

    def compute_output_shape(self, input_shape):
        """Get the input's shape: augmentation keeps it."""
        return input_shape

    def get_config(self):
        """Get what `from_config` needs."""
        return {**super().get_config(), "layers": [keras.saving.serialize_keras_object(s) for s in self.steps]}

    @classmethod
    def from_config(cls, config):
        """Get the layer back."""
        layers = [keras.saving.deserialize_keras_object(layer) for layer in config.pop("layers")]
        return cls(layers, **config)


def _stages_up_to(backbone: Backbone, stage: str | int | None) -> tuple[str, ...]:
    stages = backbone.stages
    if stage is None:
        return stages
    if isinstance(stage, int) and -len(stages) <= stage < len(stages):
        return stages[: range(len(stages))[stage] + 1]
    if stage in stages:
        return stages[: stages.index(stage) + 1]
    raise ValueError(f"{backbone.name} has no stage {stage!r}. Its {len(stages)} stages are: {', '.join(stages)}.")
