"""Freezing: which weights may move.

Two facts of Keras 3 shape this module. `training=False` on a backbone does not keep its batch norm in inference
mode inside `fit` once the backbone is unfrozen; `trainable = False` on each batch-norm layer does. And a changed
`trainable` flag does nothing until the model is compiled again, silently. So every function here takes the
model's compiled state away when it changes a flag, and `audit` compares the weights themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral

import keras
import numpy as np

from tlkeras.heads import Transfer
from tlkeras.pipelines import check_pictures


def freeze(model: keras.Model) -> None:
    """Freeze the whole backbone; only the head will train.

    Args:
        model: From `build_classifier`. It must be compiled again before `fit`, which `train_head` does.
    """
    set_trainable_layers(model, ())


def unfreeze_top(model: keras.Model, stages: int | float | str = 1, *, batch_norm: bool = False) -> tuple[str, ...]:
    """Unfreeze the backbone from some cut point up, batch norm excepted, and freeze what lies below.

    Low layers see edges and colours that most pictures share, so they are worth keeping and cost the most to
    train. Start with one stage; take more with more data, or with data further from the source. Do it after
    `train_head`: the large first gradients of a random head wreck pretrained weights.

    Args:
        model: From `build_classifier`.
        stages: How many of the last stages (int; 0 freezes all), which share of the backbone's layers
            that may train (float in (0, 1]; 1.0 is everything), or the name of a stage: what lies above it trains.
        batch_norm: True lets batch norm train as well: its weights, and in `fit` its statistics. With batches
            of 32 and a few hundred pictures that is what makes fine-tuning fail.

    Returns:
        Names of the layers that will now train, head excluded.

    Raises:
        ValueError: If the model has no such stage or share.
    """
    transfer = transfer_of(model)
    names = transfer.stages
    layers = _layers_with_weights(model, batch_norm)
    if isinstance(stages, float):
        if not 0 < stages <= 1:
            raise ValueError(f"A share of layers lies in (0, 1], got {stages}. For a number of stages pass an int.")
        chosen = layers[-max(1, round(stages * len(layers))) :]
    else:
        count = len(names) - 1 - names.index(stages) if stages in names else stages
        if not isinstance(count, Integral) or not 0 <= count <= len(names):
            raise ValueError(
                f"{transfer.backbone} cannot unfreeze {stages!r}: pass a number of stages up to {len(names)}, a share "
                f"such as 0.3, or the stage below the cut, one of {', '.join(names)}."
            )
        depths = stage_depths(transfer)
        chosen = [name for name in layers if depths[name] < count]
    set_trainable_layers(model, chosen)
    return tuple(chosen)


def unfreeze_stages(model: keras.Model, names: Iterable[str], *, batch_norm: bool = False) -> tuple[str, ...]:
    """Unfreeze exactly these stages of the backbone, batch norm excepted, wherever they are, and freeze the others.

    Surgical fine-tuning (Lee et al. 2023, https://arxiv.org/abs/2210.11466): where the pictures changed and not what
    they show (noise, another camera), an early stage may be the one to train; where the classes did, a late one.

    Args:
        model: From `build_classifier`.
        names: Of stages, such as `model.transfer.stages[:1]`; a stage is the layers up to the one it is named after.
        batch_norm: As in `unfreeze_top`.

    Returns:
        Names of the layers that will now train, head excluded.

    Raises:
        ValueError: If the model has no such stage.
    """
    transfer, names = transfer_of(model), [names] if isinstance(names, str) else list(names)
    if unknown := [name for name in names if name not in transfer.stages]:
        raise ValueError(f"{transfer.backbone} has no stage {unknown[0]!r}; it has {', '.join(transfer.stages)}.")
    wanted = {len(transfer.stages) - 1 - transfer.stages.index(name) for name in names}
    depths = stage_depths(transfer)
    chosen = [name for name in _layers_with_weights(model, batch_norm) if depths[name] in wanted]
    set_trainable_layers(model, chosen)
    return tuple(chosen)


def freeze_batch_norm(model: keras.Model) -> int:
    """Freeze every batch-norm layer of the backbone, whatever else trains, so that its statistics stay put.

    Args:
        model: From `build_classifier`; `unfreeze_top` has done this already unless told otherwise.

    Returns:
        How many layers were still trainable.
    """
    names = trainable_layers(model)
    kept = [name for name in names if not is_batch_norm(model.get_layer(name))]
    set_trainable_layers(model, kept)
    return len(names) - len(kept)


def settle_batch_norm(network: keras.Model, images: np.ndarray) -> None:
    """Give every batch-norm layer the statistics of these pictures, as if it had seen nothing else.

    Use it on random weights that shall stay as they are: untrained statistics are those of no picture, so that in
    inference mode the signal fades from layer to layer, in MobileNetV2 to a millionth, and what is compared is scale,
    not features. Also where statistics lag behind weights, as after a short training at Keras's momentum of 0.999.

    Args:
        network: Such as `backbone.model`. Its other weights and its flags stay; compile again before training it.
        images: (pictures, height, width, channels) in [0, 255]. They go through in one batch, in training mode: some
            hundreds are enough.

    Raises:
        ValueError: If the network has no batch norm, or the pictures are not its.
    """
    layers = [layer for layer in network.layers if is_batch_norm(layer)]
    if not layers:
        raise ValueError(f"{network.name} has no batch norm: there is nothing to settle.")
    check_pictures((images, None), network.input_shape)
    before = [(layer.momentum, layer.trainable) for layer in layers]
    dropping = {layer: layer.rate for layer in network.layers if isinstance(layer, keras.layers.Dropout)}
    try:
        for layer in layers:
            layer.momentum, layer.trainable = 0.0, True  # a frozen layer would keep its statistics
        for layer in dropping:
            layer.rate = 0.0  # stochastic depth is dropout too: the statistics are those of the whole network
        network(np.asarray(images, "float32"), training=True)
    finally:
        for layer, (momentum, trainable) in zip(layers, before, strict=True):
            layer.momentum, layer.trainable = momentum, trainable
        for layer, rate in dropping.items():
            layer.rate = rate


def set_trainable_layers(model: keras.Model, names: Iterable[str]) -> None:
    """Train exactly these layers of the backbone, as listed by `trainable_layers`, and freeze the others.

    Raises:
        ValueError: If the backbone has no layer of that name.
    """
    transfer, names = transfer_of(model), set(names)
    if unknown := names - set(transfer.backbone_layers):
        raise ValueError(f"{transfer.backbone} has no layers named {', '.join(sorted(unknown))}.")
    for layer in map(model.get_layer, transfer.backbone_layers):
        # A layer of layers, such as ConvNeXt's stem, that Keras has loaded says that it trains, and its parts do not.
        for part in layer._flatten_layers():
            if part.trainable != (layer.name in names):
                part.trainable = layer.name in names
                model.compiled = False  # so that a bare `fit` refuses instead of training the old set


def trainable_layers(model: keras.Model) -> tuple[str, ...]:
    """Names of the backbone's layers that would train now, in the order of the graph."""
    layers = [model.get_layer(name) for name in transfer_of(model).backbone_layers]
    opened = [layer for layer in layers if layer.trainable and layer.weights]
    return tuple(layer.name for layer in opened if is_batch_norm(layer) or layer.trainable_weights)


def stage_depths(transfer: Transfer) -> dict[str, int]:
    """Number of stages above each layer of the backbone: 0 for the layers of the top stage."""
    depths, depth = {}, len(transfer.stages) - 1
    for name in transfer.backbone_layers:
        depths[name] = depth
        depth -= name in transfer.stages
    return depths


def transfer_of(model: keras.Model) -> Transfer:
    """What `build_classifier` noted about a model; ValueError for a model that it did not make."""
    if not hasattr(model, "transfer"):
        raise ValueError(
            f"This {type(model).__name__} was not made by build_classifier or load_artifact, so its backbone and "
            "stages are unknown: call build_classifier(backbone, num_classes)."
        )
    return model.transfer


def is_batch_norm(layer: keras.Layer) -> bool:
    """Whether a layer is batch norm."""
    return isinstance(layer, keras.layers.BatchNormalization)


def _layers_with_weights(model: keras.Model, batch_norm: bool) -> list[str]:
    layers = [model.get_layer(name) for name in transfer_of(model).backbone_layers]
    return [layer.name for layer in layers if layer.weights and (batch_norm or not is_batch_norm(layer))]
