"""The freeze audit: which weights a phase of training moved, and whether that was the plan."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import keras
import numpy as np

from tlkeras.freezing import is_batch_norm


class FreezeError(RuntimeError):
    """Training moved what should have stood still, or the other way round."""


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

        Raises:
            ValueError: If the model is not built: weights that it does not have yet cannot be copied.
        """
        if not model.built and not all(layer.built for layer in model._flatten_layers(include_self=False)):
            raise ValueError(f"{model.name} is not built: call it on a batch, or give it an Input, before the audit.")
        self.model = model
        self._before = [(v, np.array(v)) for v in model.weights]
        self._planned = {id(v) for v in model.trainable_variables}
        names = model.transfer.head_layers if hasattr(model, "transfer") else ()
        head = [layer for name in names for layer in model.get_layer(name)._flatten_layers()]
        norms = [layer for layer in model._flatten_layers() if is_batch_norm(layer) and layer not in head]
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
