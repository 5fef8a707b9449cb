"""The best weights so far, early stopping, and a run that goes on after a kill."""

from __future__ import annotations

import json
import os
import time
import zipfile
from pathlib import Path

import keras
import numpy as np

from tlkeras.freezing import set_trainable_layers, trainable_layers


class Checkpoint(keras.callbacks.Callback):
    """Keeps rows and best weights of a phase, stops early, and saves all of it after each epoch.

    Keras's own callbacks do this in three parts that forget each other: after a kill `BackupAndRestore` brings back
    the weights, but `EarlyStopping` starts to count anew and the best weights are gone.
    """

    def __init__(self, owner: keras.Model, phase: str, *, patience: int | None, folder, judged: bool):
        """Take the whole model, whose weights are kept, and whether epochs are judged by a validation loss."""
        super().__init__()
        self.owner, self.phase, self.patience, self.judged = owner, phase, patience, judged
        self.path = None if folder is None else Path(folder) / f"{phase}.npz"
        self.rows: list[dict] = []
        self.best, self.best_weights, self.kept = np.inf, None, 0
        self.done, self.audit = False, None
        self._tick = time.perf_counter()

    @property
    def epoch(self) -> int:
        """Epochs done, earlier starts of the same run included."""
        return len(self.rows)

    def start(self, loss: float) -> None:
        """Note the state before the first epoch, which competes with the epochs."""
        self.best, self.best_weights = loss, self.owner.get_weights()

    def on_epoch_begin(self, epoch, logs=None):
        """Start the clock."""
        self._tick = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        """Note the epoch, keep its weights if it is the best, decide whether to stop, save."""
        logs = {key: float(value) for key, value in (logs or {}).items()}
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        row = {"phase": self.phase, "epoch": self.epoch + 1, **logs, "learning_rate": rate}
        self.rows.append({**row, "seconds": time.perf_counter() - self._tick})
        loss = logs.get("val_loss", -self.epoch)  # without validation data the latest is the best
        if loss < self.best:
            self.best, self.best_weights, self.kept = loss, self.owner.get_weights(), self.epoch
        elif self.judged and self.patience is not None and self.epoch - self.kept >= self.patience:
            self.model.stop_training = True
        if not np.isfinite(logs["loss"]):
            self.model.stop_training = True
        self.save()

    def on_train_end(self, logs=None):
        """Mark the phase as done."""
        self.done = True
        self.save()

    def keep_best(self) -> None:
        """Put the best weights into the model."""
        if self.best_weights is not None:
            self.owner.set_weights(self.best_weights)

    def save(self) -> None:
        """Write everything, whole or not at all."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        optimizer = self.model.optimizer
        state = {
            "phase": self.phase, "rows": self.rows, "best": self.best, "kept": self.kept, "done": self.done, "audit": self.audit,
            "trainable": trainable_layers(self.owner), "paths": [v.path for v in self.owner.weights],
        }  # fmt: skip
        arrays = {f"weight_{k}": w for k, w in enumerate(self.owner.get_weights())}
        arrays |= {f"best_{k}": w for k, w in enumerate(self.best_weights or [])}
        arrays |= {f"optimizer_{k}": np.array(v) for k, v in enumerate(optimizer.variables)}
        partial = self.path.with_suffix(".partial.npz")
        np.savez(partial, state=np.array(json.dumps(state)), **arrays)
        os.replace(partial, self.path)

    def load(self) -> bool:
        """Read the saved state of this phase and set the trainable flags it had; before compiling.

        Returns:
            Whether there was one.

        Raises:
            ValueError: If it belongs to another model or the file is damaged.
        """
        if self.path is None or not self.path.exists():
            return False
        try:
            with np.load(self.path, allow_pickle=False) as stored:
                self._stored = {key: stored[key] for key in stored.files}
            state = json.loads(str(self._stored["state"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{self.path} is damaged ({error}): delete it to start this phase anew.") from error
        if state["paths"] != [v.path for v in self.owner.weights]:
            raise ValueError(f"{self.path} was saved by another model: choose another run folder or delete it.")
        set_trainable_layers(self.owner, tuple(state["trainable"]))
        self.rows, self.best, self.kept, self.done = (state[k] for k in ("rows", "best", "kept", "done"))
        self.audit = state["audit"]
        return True

    def restore(self, optimizer: keras.optimizers.Optimizer, variables: list) -> None:
        """Put the loaded weights into the model and the loaded slots into the optimizer; after compiling."""
        count = len(self.owner.weights)
        self.owner.set_weights([self._stored[f"weight_{k}"] for k in range(count)])
        if "best_0" in self._stored:
            self.best_weights = [self._stored[f"best_{k}"] for k in range(count)]
        optimizer.build(variables)
        for k, variable in enumerate(optimizer.variables):
            variable.assign(self._stored[f"optimizer_{k}"])
