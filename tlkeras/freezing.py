"""Freezing: which weights may move, and the audit that proves which did.

Two facts of Keras 3 shape this module. `training=False` on a backbone does not keep its batch norm in inference
mode inside `fit` once the backbone is unfrozen; `trainable = False` on each batch-norm layer does. And a changed
`trainable` flag does nothing until the model is compiled again, silently. So every function here takes the
model's compiled state away when it changes a flag, and `FreezeAudit` compares the weights themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from numbers import Integral

import keras
import numpy as np

from tlkeras.heads import Transfer


class FreezeError(RuntimeError):
    """Training moved what should have stood still, or the other way round."""


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
        stages: How many of the last stages (int; 0 freezes all), which share of the backbone's layers with
            weights (float in (0, 1]; 1.0 is everything), or the name of a stage: what lies above it trains.
        batch_norm: True lets batch norm train as well: its weights, and in `fit` its statistics. With batches
            of 32 and a few hundred pictures that is what makes fine-tuning fail.

    Returns:
        Names of the layers that will now train, head excluded.

    Raises:
        ValueError: If the model has no such stage or share.
    """
    transfer = transfer_of(model)
    names = transfer.stages
    layers = [
        name
        for name in transfer.backbone_layers
        if model.get_layer(name).weights and (batch_norm or not _is_batch_norm(model.get_layer(name)))
    ]
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


def freeze_batch_norm(model: keras.Model) -> int:
    """Freeze every batch-norm layer of the backbone, whatever else trains, so that its statistics stay put.

    Args:
        model: From `build_classifier`; `unfreeze_top` has done this already unless told otherwise.

    Returns:
        How many layers were still trainable.
    """
    names = trainable_layers(model)
    kept = [name for name in names if not _is_batch_norm(model.get_layer(name))]
    set_trainable_layers(model, kept)
    return len(names) - len(kept)


def set_trainable_layers(model: keras.Model, names: Iterable[str]) -> None:
    """Train exactly these layers of the backbone, as listed by `trainable_layers`, and freeze the others.

    Raises:
        ValueError: If the backbone has no layer of that name.
    """
    transfer, names = transfer_of(model), set(names)
    if unknown := names - set(transfer.backbone_layers):
        raise ValueError(f"{transfer.backbone} has no layers named {', '.join(sorted(unknown))}.")
    for layer in map(model.get_layer, transfer.backbone_layers):
        if layer.trainable != (layer.name in names):
            layer.trainable = layer.name in names
            model.compiled = False  # so that a bare `fit` refuses instead of training the old set


def trainable_layers(model: keras.Model) -> tuple[str, ...]:
    """Names of the backbone's layers that would train now, in the order of the graph."""
    layers = map(model.get_layer, transfer_of(model).backbone_layers)
    return tuple(layer.name for layer in layers if layer.trainable and layer.weights)


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
            "This model was not made by build_classifier or load_artifact, so its backbone and stages are unknown."
        )
    return model.transfer


@dataclass(frozen=True)
class AuditReport:
    """What a phase of training did to the weights; counts and names of variables.

    Attributes:
        planned: Number of variables that the plan lets train.
        moved: Of these, how many did. A few may not: a ReLU unit that never fires has no gradient.
        frozen: Number of variables that must not move.
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
    def problem(self) -> str | None:
        """What is wrong and what to do about it; None where the truth agrees with the plan."""
        if self.frozen_moved:
            why = "A `trainable` flag was changed without compiling again"
            if set(self.statistics_moved) & set(self.frozen_moved):
                why = "Batch norm ran in training mode, which `training=False` does not prevent inside `fit`"
            shown = ", ".join(self.frozen_moved[:3]) + (" ..." if len(self.frozen_moved) > 3 else "")
            return (
                f"{len(self.frozen_moved)} frozen variables moved ({shown}). {why}. Use `freeze` or `unfreeze_top` on "
                "a model from `build_classifier`, then `train_head` or `fine_tune`."
            )
        if self.optimizer_missing or self.optimizer_extra:
            return (
                f"The optimizer lacks {len(self.optimizer_missing)} trainable variables and holds "
                f"{len(self.optimizer_extra)} frozen ones: the model was not compiled after `trainable` changed."
            )
        if not self.moved:
            return "No trainable variable moved. Is the learning rate 0, or is everything frozen?"
        return None

    def to_dict(self) -> dict:
        """Get a dictionary that JSON can hold."""
        return {**asdict(self), "holds": self.problem is None}

    @classmethod
    def from_dict(cls, values: dict) -> AuditReport:
        """Get the report back from `to_dict`'s result."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k != "holds"})

    def __str__(self) -> str:
        in_step = not (self.optimizer_missing or self.optimizer_extra)
        return (
            f"moved {self.moved} of {self.planned} trainable variables, {len(self.frozen_moved)} of {self.frozen} "
            f"frozen ones, {len(self.statistics_moved)} batch-norm statistics; the optimizer "
            + ("holds exactly the trainable set" if in_step else "is out of step")
        )


class FreezeAudit:
    """A copy of all weights before training, to be held against the weights after it.

        audit = FreezeAudit(model)
        model.fit(...)
        print(audit.check())

    The plan is read at the start: what was trainable then may move, nothing else. Works on any Keras model, nested
    ones included. Costs one copy of the weights in memory.
    """

    def __init__(self, model: keras.Model, *, batch_norm: bool = False):
        """Take the copy and the plan.

        Args:
            model: Before training, its flags as they should be.
            batch_norm: Whether the statistics of batch-norm layers that are trainable may move too. Those of frozen
                layers never may; those of a head's own batch norm always may.
        """
        self.model = model
        self._before = [(v, np.array(v)) for v in model.weights]
        self._planned = {id(v) for v in model.trainable_variables}
        names = model.transfer.head_layers if hasattr(model, "transfer") else ()
        head = [layer for name in names for layer in model.get_layer(name)._flatten_layers()]
        norms = [layer for layer in model._flatten_layers() if _is_batch_norm(layer) and layer not in head]
        self._statistics = {id(v) for layer in norms for v in (layer.moving_mean, layer.moving_variance)}
        live = {id(v) for layer in head + (norms if batch_norm else []) for v in layer.weights}
        locked = {id(v) for layer in model._flatten_layers() if not layer.trainable for v in layer.weights}
        self._allowed = self._planned | (live - locked)

    def check(self, *, raise_error: bool = True) -> AuditReport:
        """Compare the weights now with those at the start.

        Args:
            raise_error: False returns a failing report instead of raising.

        Raises:
            FreezeError: If a frozen variable moved, no trainable one did, or the optimizer holds another set.
        """
        # Compared bit by bit, so that a weight that became NaN counts as moved once.
        moved = {id(v) for v, before in self._before if before.tobytes() != np.array(v).tobytes()}
        optimizer = getattr(self.model, "optimizer", None)
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # a loss scaler wraps it under mixed precision
        built = optimizer is not None and optimizer.built
        held = {id(v) for v in optimizer._trainable_variables} if built else self._planned

        def paths(chosen: set[int]) -> tuple[str, ...]:
            return tuple(v.path for v, _ in self._before if id(v) in chosen)

        report = AuditReport(
            planned=len(self._planned),
            moved=len(moved & self._planned),
            frozen=len(self._before) - len(self._allowed),
            frozen_moved=paths(moved - self._allowed),
            statistics_moved=paths(moved & self._statistics),
            optimizer_missing=paths(self._planned - held),
            optimizer_extra=paths(held - self._planned),
        )
        if raise_error and report.problem:
            raise FreezeError(report.problem)
        return report


def _is_batch_norm(layer: keras.Layer) -> bool:
    return isinstance(layer, keras.layers.BatchNormalization)
