"""The best weights so far, early stopping, and a run that goes on after a kill."""

from __future__ import annotations

import json
import os
import time
import zipfile
from pathlib import Path

import keras
import numpy as np

from tlkeras.audit import FreezeAudit
from tlkeras.freezing import set_trainable_layers, trainable_layers, transfer_of


class Checkpoint(keras.callbacks.Callback):
    """Keeps rows and best weights of a phase, audits it, stops it early, and saves all of it after each epoch.

    Keras's own callbacks do this in three parts that forget each other: after a kill `BackupAndRestore` brings back
    the weights, but `EarlyStopping` starts to count anew and the best weights are gone.
    """

    def __init__(self, owner: keras.Model, phase: str, call: dict, *, patience: int | None, folder):
        """Take the whole model, whose weights are kept, and what tells this call from another of the same phase."""
        super().__init__()
        self.owner, self.phase, self.patience = owner, phase, patience
        self.path = None if folder is None else Path(folder) / f"{phase}.npz"
        self.identity = {
            "model": transfer_of(owner).to_dict(),
            "weights": [[v.path, list(v.shape)] for v in owner.weights],
            "precision": owner.dtype_policy.name,
            **call,
        }
        self.rows: list[dict] = []
        self.best, self.best_weights, self.kept = np.inf, None, 0
        self.done, self.audit = False, None
        self._stored: dict | None = None

    @property
    def epoch(self) -> int:
        """Epochs done, earlier starts of the same run included."""
        return len(self.rows)

    def start(self, audit: FreezeAudit, loss: float) -> None:
        """Note the state before the first epoch, which competes with the epochs if it has a validation loss."""
        self._auditor = audit
        if self.best_weights is None:
            self.best, self.best_weights = loss, self.owner.get_weights()

    def on_epoch_begin(self, epoch, logs=None):
        """Start the clock."""
        self._tick = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        """Note the epoch, keep its weights if it is the best, decide whether to stop, save."""
        logs = {key: float(value) for key, value in logs.items()}
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        row = {"phase": self.phase, "epoch": self.epoch + 1, **logs, "learning_rate": rate}
        self.rows.append({**row, "seconds": time.perf_counter() - self._tick})
        loss = logs.get("val_loss", -self.epoch)  # without validation data the latest is the best
        broken = not np.isfinite(logs["loss"])
        if loss < self.best and not broken:
            # What the trained model lacks, since its inputs were stored, stands still and is not copied again.
            live, now = {id(v) for v in self.model.weights}, zip(self.owner.weights, self.best_weights, strict=True)
            self.best_weights = [np.array(v) if id(v) in live else before for v, before in now]
            self.best, self.kept = loss, self.epoch
        stale = "val_loss" in logs and self.patience is not None and self.epoch - self.kept >= self.patience
        self.done = broken or stale or self.epoch >= self.params["epochs"]
        self.model.stop_training = self.done
        if self.done or self.path:  # it looks at every weight
            self.audit = self._auditor.check(raise_error=False).to_dict()
        if self.path:
            self.save()

    def keep_best(self) -> None:
        """Put the best weights into the model."""
        if self.best_weights is not None:
            self.owner.set_weights(self.best_weights)

    def save(self) -> None:
        """Write everything, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "identity": self.identity, "trainable": trainable_layers(self.owner), "rows": self.rows,
            "best": self.best, "kept": self.kept, "done": self.done, "audit": self.audit,
        }  # fmt: skip
        slots = [keras.ops.convert_to_numpy(v) for v in self.model.optimizer.variables]
        parts = {"weight": self.owner.get_weights(), "best": self.best_weights, "optimizer": slots}
        arrays = {f"{name}_{k}": array for name, part in parts.items() for k, array in enumerate(part)}
        partial = self.path.with_suffix(".partial.npz")
        np.savez(partial, state=np.array(json.dumps(state)), **arrays)
        os.replace(partial, self.path)

    def load(self) -> None:
        """Read the saved state of this phase, if any, and set the trainable flags it had; before compiling.

        Raises:
            ValueError: If it belongs to another model or another call, or the file is damaged.
        """
        if self.path is None or not self.path.exists():
            return
        try:
            with np.load(self.path, allow_pickle=False) as stored:
                self._stored = {key: stored[key] for key in stored.files}
            state = json.loads(str(self._stored["state"]))
            identity, trainable = state["identity"], state["trainable"]
            self.rows, self.best, self.kept, self.done, self.audit = (
                state[key] for key in ("rows", "best", "kept", "done", "audit")
            )
            self.best_weights = self._part("best")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{self.path} is damaged ({error}): delete it to start this phase anew.") from error
        wanted = json.loads(json.dumps({**self.identity, "trainable": trainable_layers(self.owner) or trainable}))
        for key, value in wanted.items():
            before = trainable if key == "trainable" else identity.get(key)
            if before != value:
                what = "another model" if key in ("model", "weights") else f"{key} = {before!r}, now it is {value!r}"
                raise ValueError(f"{self.path} was saved with {what}. Choose another run folder, or delete it.")
        set_trainable_layers(self.owner, trainable)

    def restore(self, trained: keras.Model) -> bool:
        """Put loaded weights into the model and loaded slots into the optimizer of `trained`; after compiling.

        Returns:
            Whether there were any.
        """
        if self._stored is None:
            return False
        self.owner.set_weights(self._part("weight"))
        for variable, value in zip(trained.optimizer.variables, self._part("optimizer"), strict=True):
            variable.assign(value)
        self._stored = None
        return True

    def _part(self, name: str) -> list[np.ndarray]:
        count = sum(key.startswith(f"{name}_") for key in self._stored)
        return [self._stored[f"{name}_{k}"] for k in range(count)]
