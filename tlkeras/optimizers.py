"""What is minimized and how: losses, learning rates that differ from layer to layer, and their schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping

import keras

from tlkeras.arguments import real_number
from tlkeras.freezing import stage_depths, transfer_of


@keras.saving.register_keras_serializable("tlkeras")
class DiscriminativeAdam(keras.optimizers.Adam):
    """Adam whose step on each variable is multiplied by that variable's factor.

    Multiplying gradients instead does nothing under Adam, which divides by their size. Here the learning rate
    inside the update is multiplied, so a factor of 0.1 makes a step a tenth as long.
    """

    def __init__(self, learning_rate=0.001, factors: dict[str, float] | None = None, **options):
        """Take factors by variable path; a variable that is not named has the factor 1."""
        super().__init__(learning_rate=learning_rate, **options)
        self.factors = dict(factors or {})

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        # Not `update_step`: the torch backend updates all variables at once and never calls it.
        groups: dict[float, list] = {}
        for pair in zip(grads, trainable_variables, strict=True):
            groups.setdefault(float(self.factors.get(pair[1].path, 1.0)), []).append(pair)
        for factor, pairs in groups.items():
            some_grads, variables = map(list, zip(*pairs, strict=True))
            super()._backend_update_step(some_grads, variables, learning_rate * factor)

    def get_config(self):
        """Get what `from_config` needs."""
        return {**super().get_config(), "factors": self.factors}


def learning_rate_factors(model: keras.Model, head_factor: float, stage_decay: float) -> dict[str, float]:
    """Get the factor of each trainable variable: `head_factor` for the head, `stage_decay**k` k stages below the top.

    Args:
        model: From `build_classifier`.
        head_factor: On the head's variables.
        stage_decay: For each stage further down.

    Returns:
        Factors by variable path.
    """
    depths = stage_depths(transfer_of(model))
    return {
        variable.path: stage_decay ** depths[layer.name] if layer.name in depths else head_factor
        for layer in model.layers
        for variable in layer.trainable_variables
    }


def warmup_cosine(peak: float, num_steps: int, warmup: float) -> keras.optimizers.schedules.LearningRateSchedule:
    """Get a learning rate that rises to `peak` over the share `warmup` of the steps and falls to 0 as a cosine.

    Raises:
        ValueError: If `peak` is not a positive number.
    """
    peak = real_number("learning_rate", peak, "(0, inf)")
    rising = int(warmup * num_steps)
    if rising < 1:
        return keras.optimizers.schedules.CosineDecay(peak, max(num_steps, 1))
    return keras.optimizers.schedules.CosineDecay(
        peak / rising, max(num_steps - rising, 1), warmup_target=peak, warmup_steps=rising
    )


@keras.saving.register_keras_serializable("tlkeras")
class SmoothedCrossentropy(keras.losses.CategoricalCrossentropy):
    """Cross-entropy with label smoothing for integer labels; Keras has it for one-hot labels only."""

    def call(self, y_true, y_pred):
        """Get the loss of each picture, (batch,)."""
        classes = keras.ops.cast(keras.ops.reshape(y_true, (-1,)), "int32")
        return super().call(keras.ops.one_hot(classes, y_pred.shape[-1]), y_pred)


@keras.saving.register_keras_serializable("tlkeras")
class ClassWeighted(keras.losses.Loss):
    """A loss in which each picture counts by the weight of its class, in training and validation alike.

    Keras's `fit(class_weight=...)` weighs training only. A validation loss that weighs all pictures alike then chooses
    among the epochs by another aim: with a rare class it puts back the head that has learnt nothing.
    """

    def __init__(self, loss: keras.losses.Loss, weights: list[float], **options):
        """Take the loss of each picture and the weight of each class, by label."""
        super().__init__(**options)
        self.loss, self.weights = keras.losses.get(loss), list(weights)

    def call(self, y_true, y_pred):
        """Get the loss of each picture, (batch,)."""
        ops = keras.ops
        classes = ops.cast(ops.reshape(y_true, (-1,)), "int32")
        each = ops.reshape(self.loss.call(y_true, y_pred), (-1,))
        return each * ops.take(ops.convert_to_tensor(self.weights, dtype=each.dtype), classes)

    def get_config(self):
        """Get what `from_config` needs."""
        loss = keras.saving.serialize_keras_object(self.loss)
        return {**super().get_config(), "loss": loss, "weights": self.weights}


class ClassWeightedAccuracy(keras.metrics.Mean):
    """Accuracy in which each picture counts by the weight of its class, as in the loss."""

    def __init__(self, weights: list[float], name: str = "weighted_accuracy", **options):
        """Take the weight of each class, by label."""
        super().__init__(name=name, **options)
        self.weights_of_classes = list(weights)

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Count pictures by their labels and the logits of all classes, or one logit for two."""
        ops = keras.ops
        classes = ops.cast(ops.reshape(y_true, (-1,)), "int32")
        guess = ops.argmax(y_pred, axis=-1) if y_pred.shape[-1] > 1 else ops.reshape(y_pred > 0, (-1,))
        weights = ops.take(ops.convert_to_tensor(self.weights_of_classes, dtype="float32"), classes)
        return super().update_state(ops.cast(ops.cast(guess, "int32") == classes, "float32"), weights)

    def get_config(self):
        """Get what `from_config` needs."""
        return {**super().get_config(), "weights": self.weights_of_classes}


def class_weights(model: keras.Model, class_weight: Mapping[int, float] | None) -> list[float] | None:
    """Get the weight of each class by label, 1 where none is named; None if there is nothing to weigh.

    Raises:
        ValueError: If the model's task has no classes, a key is no label of it, or a weight is negative or not finite.
    """
    task = transfer_of(model).task
    if class_weight is None or class_weight == {}:
        return None
    if task not in ("classification", "binary"):
        raise ValueError(f"class_weight is for classes; this model's task is {task!r}.")
    labels = range(2 if task == "binary" else model.output_shape[-1])
    fits = isinstance(class_weight, Mapping) and all(key in labels for key in class_weight)
    if not fits or not all(0 <= float(weight) < math.inf for weight in class_weight.values()):
        raise ValueError(
            f"class_weight names a weight of 0 or more by label, from 0 to {labels[-1]}, such as data.class_weight; "
            f"got {class_weight!r}."
        )
    return [float(class_weight.get(label, 1.0)) for label in labels]


@keras.saving.register_keras_serializable("tlkeras")
class DetectionLoss(keras.losses.Loss):
    """Of a detector's maps: is the middle of an object here, and how far are its sides?

    The first is the focal loss of CenterNet (Zhou and others 2019, https://arxiv.org/abs/1904.07850, equation 1), which
    forgives scores beside a middle; the second the absolute error of the four distances, at the middles only. Both are
    divided by the number of middles in the picture, or by 1 if there is none.
    """

    def __init__(self, side_weight: float = 5.0, **options):
        """Take how much the sides count beside the middles."""
        super().__init__(**options)
        self.side_weight = side_weight

    def call(self, y_true, y_pred):
        """Get the loss of each picture, (batch,), from maps of `encode_objects` and of the model."""
        ops = keras.ops
        heat, logits = y_true[..., :-4], y_pred[..., :-4]
        middle, score = ops.cast(heat >= 1, logits.dtype), ops.sigmoid(logits)
        hit = middle * (1 - score) ** 2 * ops.softplus(-logits)
        miss = (1 - middle) * (1 - heat) ** 4 * score**2 * ops.softplus(logits)
        off = ops.abs(y_true[..., -4:] - ops.softplus(y_pred[..., -4:])) * ops.max(middle, axis=-1, keepdims=True)
        total = ops.sum(hit + miss, axis=(1, 2, 3)) + self.side_weight * ops.sum(off, axis=(1, 2, 3))
        return total / ops.maximum(ops.sum(middle, axis=(1, 2, 3)), 1)

    def get_config(self):
        """Get what `from_config` needs."""
        return {**super().get_config(), "side_weight": self.side_weight}


def make_objective(model: keras.Model, label_smoothing: float, weights: list[float] | None = None) -> dict:
    """Get the loss and the metrics of the model's task, as arguments for `compile`; weights are those of the classes.

    Raises:
        ValueError: If labels shall be smoothed that are numbers or maps.
    """
    task = transfer_of(model).task
    if label_smoothing and task in ("regression", "detection"):
        raise ValueError(f"label_smoothing is for classes; this model's task is {task!r}: leave it at 0.")
    if task == "detection":
        return {"loss": DetectionLoss()}
    if task == "regression":
        error = keras.metrics.MeanAbsoluteError(name="mean_absolute_error")
        return {"loss": keras.losses.MeanSquaredError(), "metrics": [error]}
    if task in ("binary", "multi-label"):
        accuracy = keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0)  # the model gives logits
        loss = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=label_smoothing)
    else:
        accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        if label_smoothing:
            loss = SmoothedCrossentropy(True, label_smoothing)
    return {"loss": ClassWeighted(loss, weights) if weights else loss, "metrics": [accuracy]}
