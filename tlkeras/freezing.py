"""Freezing: which weights may move, and the audit that proves which did.

Two facts of Keras 3 shape this module. `training=False` on a backbone does not keep its batch norm in inference
mode inside `fit` once the backbone is unfrozen; `trainable = False` on each batch-norm layer does. And a changed
`trainable` flag does nothing until the model is compiled again, silently. So every function here takes the
model's compiled state away when it changes a flag, and `FreezeAudit` compares the weights themselves.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import keras
import numpy as np


class FreezeError(RuntimeError):
    """Training moved what should have stood still, or the other way round."""


def freeze(model: keras.Model) -> None:
    """Freeze the whole backbone; only the head will train.

    Args:
        model: From `build_classifier`. It must be compiled again before `fit`, which `train_head` does.
    """
    _set_trainable(model, set())


def unfreeze_top(model: keras.Model, stages: int | float | str = 1, *, batch_norm: bool = False) -> tuple[str, ...]:
    """Unfreeze the backbone from some cut point up, batch norm excepted, and freeze what lies below.

    Low layers see edges and colours that most pictures share, so they are worth keeping and cost the most to
    train. Start with one stage; take more with more data, or with data further from the source. Do it after
    `train_head`: the large first gradients of a random head wreck pretrained weights.

    Args:
        model: From `build_classifier`.
        stages: How many of the last stages (int; 0 freezes all), which share of the backbone's layers with
            weights (float in (0, 1]; 1.0 is everything), or the name of a stage: what lies above it trains.
        batch_norm: True lets batch norm train as well: its weights, and in `fit` its statistics. With batches
            of 32 and a few hundred pictures that is what makes fine-tuning fail.

    Returns:
        Names of the layers that will now train, head excluded.

    Raises:
        ValueError: If the model has no such stage or share.
    """
    transfer = _transfer(model)
    layers = transfer.backbone_layers
    if isinstance(stages, str):
        if stages not in transfer.stages:
            raise ValueError(f"{transfer.backbone} has no stage {stages!r}; it has {', '.join(transfer.stages)}.")
        start = layers.index(stages) + 1
    elif isinstance(stages, float):
        if not 0 < stages <= 1:
            raise ValueError(f"A share of layers lies in (0, 1], got {stages}. For a number of stages pass an int.")
        weighted = [k for k, name in enumerate(layers) if model.get_layer(name).weights]
        start = weighted[min(len(weighted) - round(stages * len(weighted)), len(weighted) - 1)]
    else:
        if not 0 <= stages <= len(transfer.stages):
            raise ValueError(f"{transfer.backbone} has {len(transfer.stages)} stages; cannot unfreeze {stages}.")
        bottom = len(transfer.stages) - stages
        start = 0 if bottom == 0 else layers.index(transfer.stages[bottom - 1]) + 1
    chosen = {
        name for name in layers[start:] if model.get_layer(name).weights and (batch_norm or not _is_norm(model, name))
    }
    _set_trainable(model, chosen)
    return tuple(name for name in layers if name in chosen)


def freeze_batch_norm(model: keras.Model) -> int:
    """Freeze every batch-norm layer of the backbone, whatever else trains, so that its statistics stay put.

    Args:
        model: From `build_classifier`; `unfreeze_top` has done this already unless told otherwise.

    Returns:
        How many layers were still trainable.
    """
    transfer = _transfer(model)
    names = {name for name in transfer.backbone_layers if model.get_layer(name).trainable_weights}
    kept = {name for name in names if not _is_norm(model, name)}
    if kept != names:
        _set_trainable(model, kept)
    return len(names) - len(kept)


def set_trainable_layers(model: keras.Model, names: tuple[str, ...]) -> None:
    """Train exactly these layers of the backbone, as listed by `trainable_layers`; for resuming a run."""
    _set_trainable(model, set(names))


def trainable_layers(model: keras.Model) -> tuple[str, ...]:
    """Names of the backbone's layers that would train now, in the order of the graph."""
    return tuple(name for name in _transfer(model).backbone_layers if model.get_layer(name).trainable_weights)


@dataclass(frozen=True)
class AuditReport:
    """What a phase of training did to the weights; counts of variables.

    Attributes:
        planned: Variables that the plan lets move.
        moved: Of these, how many did. A few may not: a ReLU unit that never fires has no gradient.
        frozen: Variables that must not move.
        frozen_moved: Names of those that did.
        statistics_moved: Names of the backbone's batch-norm means and variances that moved.
        optimizer_missing: Trainable variables that the optimizer does not hold.
        optimizer_extra: Variables that the optimizer holds although they are frozen.
    """

    planned: int
    moved: int
    frozen: int
    frozen_moved: tuple[str, ...]
    statistics_moved: tuple[str, ...]
    optimizer_missing: tuple[str, ...]
    optimizer_extra: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether the truth agrees with the plan."""
        wrong = self.frozen_moved or self.optimizer_missing or self.optimizer_extra
        return not wrong and (self.moved > 0 or self.planned == 0)

    def to_dict(self) -> dict:
        """Get a dictionary that JSON can hold."""
        return {**asdict(self), "holds": self.holds}

    @classmethod
    def from_dict(cls, values: dict) -> AuditReport:
        """Get the report back from `to_dict`'s result."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k != "holds"})

    def __str__(self) -> str:
        return (
            f"moved {self.moved} of {self.planned} trainable variables, {len(self.frozen_moved)} of {self.frozen} frozen "
            f"ones, {len(self.statistics_moved)} batch-norm statistics; the optimizer "
            + (
                "holds exactly the trainable set"
                if not self.optimizer_missing + self.optimizer_extra
                else "is out of step"
            )
        )


class FreezeAudit:
    """A copy of all weights before training, to be held against the weights after it.

        audit = FreezeAudit(model)
        model.fit(...)
        print(audit.check())

    The plan is read at the start: what was trainable then may move, nothing else, and no batch-norm statistic
    of a frozen layer. Costs one copy of the weights in memory.
    """

    def __init__(self, model: keras.Model):
        """Take the copy and the plan."""
        self.model = model
        self._trainable = {v.path for v in model.trainable_variables}
        frozen_norms = (layer for layer in flatten(model) if _has_statistics(layer) and not layer.trainable)
        self._statistics = {v.path for layer in frozen_norms for v in layer.non_trainable_variables}
        live_norms = (layer for layer in flatten(model) if _has_statistics(layer) and layer.trainable)
        self._live_statistics = {v.path for layer in live_norms for v in (layer.moving_mean, layer.moving_variance)}
        self._before = {v.path: np.array(v) for v in model.weights}

    def check(self, *, raise_error: bool = True) -> AuditReport:
        """Compare the weights now with those at the start.

        Args:
            raise_error: False returns a failing report instead of raising.

        Raises:
            FreezeError: If a frozen variable moved, no trainable one did, or the optimizer holds another set.
        """
        moved = {v.path for v in self.model.weights if not np.array_equal(self._before[v.path], np.array(v))}
        frozen = set(self._before) - self._trainable - self._live_statistics
        held = _optimizer_variables(self.model)
        backbone = set(self.model.transfer.backbone_layers) if hasattr(self.model, "transfer") else None
        statistics = {
            path for path in moved & (self._statistics | self._live_statistics)
            if path.endswith(("moving_mean", "moving_variance")) and (backbone is None or path.split("/")[0] in backbone)
        }  # fmt: skip
        report = AuditReport(
            planned=len(self._trainable),
            moved=len(moved & self._trainable),
            frozen=len(frozen),
            frozen_moved=tuple(sorted(moved & frozen)),
            statistics_moved=tuple(sorted(statistics)),
            optimizer_missing=() if held is None else tuple(sorted(self._trainable - held)),
            optimizer_extra=() if held is None else tuple(sorted(held - self._trainable)),
        )
        if raise_error and not report.holds:
            raise FreezeError(_explain(report))
        return report


def flatten(model: keras.Model) -> list[keras.Layer]:
    """All layers of a model, those of nested models included."""
    return [layer for layer in model._flatten_layers(include_self=False)]


def _explain(report: AuditReport) -> str:
    if report.frozen_moved:
        shown = ", ".join(report.frozen_moved[:3])
        return (
            f"{len(report.frozen_moved)} frozen variables moved ({shown} ...). A `trainable` flag was changed without "
            "compiling again, or batch norm ran in training mode. Use `freeze` or `unfreeze_top`, then `train_head` or "
            "`fine_tune`."
        )
    if report.optimizer_missing or report.optimizer_extra:
        return (
            f"The optimizer lacks {len(report.optimizer_missing)} trainable variables and holds "
            f"{len(report.optimizer_extra)} frozen ones: the model was not compiled after `trainable` changed."
        )
    return "No trainable variable moved. Is the learning rate 0, the data empty, or the loss not a number?"


def _optimizer_variables(model: keras.Model) -> set[str] | None:
    optimizer = getattr(model, "optimizer", None)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # a loss scaler wraps it under mixed precision
    if optimizer is None or not optimizer.built:
        return None
    return {v.path for v in optimizer._trainable_variables}


def _set_trainable(model: keras.Model, names: set[str]) -> None:
    transfer = _transfer(model)
    unknown = names - set(transfer.backbone_layers)
    if unknown:
        raise ValueError(f"{transfer.backbone} has no layers named {sorted(unknown)}.")
    before = [v.path for v in model.trainable_variables]
    for name in transfer.backbone_layers:
        model.get_layer(name).trainable = name in names
    if [v.path for v in model.trainable_variables] != before:
        model.compiled = False  # so that a bare `fit` refuses instead of training the old set


def _transfer(model: keras.Model):
    if not hasattr(model, "transfer"):
        raise ValueError("This model was not made by tlkeras.build_classifier, so its backbone and stages are unknown.")
    return model.transfer


def _is_norm(model: keras.Model, name: str) -> bool:
    return _has_statistics(model.get_layer(name))


def _has_statistics(layer: keras.Layer) -> bool:
    return isinstance(layer, keras.layers.BatchNormalization)
