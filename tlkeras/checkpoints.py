"""The best weights so far, early stopping, and a run that goes on after a kill."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tlkeras.audit import FreezeAudit
from tlkeras.engines import compute_precision
from tlkeras.freezing import set_trainable_layers, trainable_layers, transfer_of

STATE = ("rows", "best", "kept", "share", "done", "audit")
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the way from the first weights to the last ones


class Checkpoint(keras.callbacks.Callback):
    """Keeps rows and best weights of a phase, audits it, stops it early, and saves all of it after each epoch.

    Keras's own callbacks do this in three parts that forget each other: after a kill `BackupAndRestore` brings back
    the weights, but `EarlyStopping` starts to count anew and the best weights are gone. Where a model trains on stored
    features, what lies below them is neither copied nor saved, but known again by its hash.
    """

    def __init__(self, owner: keras.Model, phase: str, call: dict, *, patience: int | None, folder):
        """Take the whole model, whose weights are kept, and what tells this call from another of the same phase."""
        super().__init__()
        self.owner, self.phase, self.patience = owner, phase, patience
        self.path = None if folder is None else Path(folder).expanduser() / f"{phase}.npz"
        self.identity = {
            "model": _without_counters(transfer_of(owner).to_dict()),
            "weights": _without_counters([[v.path, list(v.shape)] for v in owner.weights]),
            "precision": compute_precision(owner),
            **call,
        }
        self.rows: list[dict] = []
        self.best, self.kept, self.share = np.inf, 0, 1.0
        self.first_weights: dict[int, np.ndarray] = {}  # those before the first epoch, by their places in the model's
        self.best_weights: dict[int, np.ndarray] | None = None
        self.done, self.audit = False, None
        self._stored: dict | None = None

    @property
    def epoch(self) -> int:
        """Epochs done, earlier starts of the same run included."""
        return len(self.rows)

    def start(self, trained: keras.Model, audit: FreezeAudit, loss: float) -> None:
        """Note the state before the first epoch, which competes with the epochs if it has a validation loss."""
        self._auditor, live = audit, {id(v) for v in trained.weights}
        self._live = {k: v for k, v in enumerate(self.owner.weights) if id(v) in live}
        self._still = self.path and self._hash_without(self._live)
        if self.best_weights is None:
            self.best, self.best_weights = loss, self._weights()
            self.first_weights = self.best_weights

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
            self.best, self.best_weights, self.kept = loss, self._weights(), self.epoch
        stale = "val_loss" in logs and self.patience is not None and self.epoch - self.kept >= self.patience
        self.done = bool(broken or stale or self.epoch >= self.params["epochs"])  # not numpy's, which JSON refuses
        self.model.stop_training = self.done
        if self.done:  # it looks at every weight
            self.audit = self._auditor.check(raise_error=False).to_dict()
        if self.path:
            self.save()

    def starts_elsewhere(self) -> bool:
        """Whether the stored phase began with other weights than the model has now, which going on will not use."""
        known = [part for part in (self.first_weights, self.best_weights) if part]  # the best: after Ctrl-C
        now = {k: np.array(variable) for k, variable in enumerate(self.owner.weights)}
        return bool(known) and not any(
            all(np.allclose(now[k], value, rtol=1e-2, atol=1e-2 * np.abs(value).max()) for k, value in part.items())
            for part in known
        )

    def search_line(self, judge: Callable[[], dict[str, float]]) -> None:
        """Take for the best what has the lowest validation loss on the line from the first weights to the last ones.

        The last epochs are often more right than the first state and too sure of it, which the loss punishes; part of
        the way there is right as often and less sure. Where fewer pictures are right than at first, a lower loss does
        not count: it can come from being less sure of everything. An epoch half way in time is not on that line: it is
        where the learning rate was high, and a low loss there is luck. `judge` gives the loss and, where the task has
        one, the accuracy on the validation data, by the weights of the classes if these count in the loss.
        """
        if self.share != 1:
            return  # a finished phase of before: found then
        last, best, least, share = self._weights(), np.inf, 0.0, 0.0
        for candidate in SHARES:
            self._assign(self._between(last, candidate))
            found = judge()
            right = found.get("weighted_accuracy", found.get("accuracy", 0.0))
            least = least if candidate else right
            if found["loss"] < best and right >= least:
                best, share = found["loss"], candidate
        # Only now: who is stopped in between has the best epoch.
        self.best, self.share, self.kept = best, share, self.epoch if share else 0
        self.best_weights = self._between(last, share)
        self._assign(last)
        if self.path and self.model is not None:
            self.save()

    def keep_best(self, share: float = 1.0) -> None:
        """Put the best weights into the model, or those at this share of the way to them from the first ones."""
        best = self.best_weights or {}
        if share != 1:
            best, self.share = self._between(best, share), share
        self._assign(best)

    def save(self) -> None:
        """Write everything, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "identity": self.identity, "still": self._still, "trainable": trainable_layers(self.owner),
            **{key: getattr(self, key) for key in STATE},
        }  # fmt: skip
        slots = {k: keras.ops.convert_to_numpy(v) for k, v in enumerate(self.model.optimizer.variables)}
        parts = {"weight": self._weights(), "first": self.first_weights, "best": self.best_weights, "optimizer": slots}
        arrays = {f"{name}_{k}": array for name, part in parts.items() for k, array in part.items()}
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
            identity, still, trainable = state["identity"], state["still"], state["trainable"]
            for key in STATE:
                setattr(self, key, state[key])
            self.first_weights, self.best_weights = self._part("first"), self._part("best")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{self.path} is damaged ({error}): delete it to start this phase anew.") from error
        wanted = json.loads(json.dumps({**self.identity, "trainable": trainable_layers(self.owner) or trainable}))
        for key, value in wanted.items():
            before = trainable if key == "trainable" else identity.get(key)
            if before != value:
                what = "another model" if key in ("model", "weights") else f"{key} = {before!r}, now it is {value!r}"
                raise ValueError(f"{self.path} was saved with {what}. Choose another run folder, or delete it.")
        if still != self._hash_without(self._part("weight")):
            raise ValueError(
                f"{self.path} was saved with other pretrained weights. Choose another run folder, or delete it."
            )
        set_trainable_layers(self.owner, trainable)

    def restore(self, trained: keras.Model) -> bool:
        """Put loaded weights into the model and loaded slots into the optimizer of `trained`; after compiling.

        Returns:
            Whether there were any.
        """
        if self._stored is None:
            return False
        self._assign(self._part("weight"))
        for k, value in self._part("optimizer").items():
            trained.optimizer.variables[k].assign(value)
        self._stored = None
        return True

    def _part(self, name: str) -> dict[int, np.ndarray]:
        return {int(key.split("_")[1]): array for key, array in self._stored.items() if key.startswith(f"{name}_")}

    def _between(self, last: dict[int, np.ndarray], share: float) -> dict[int, np.ndarray]:
        first = {k: value for k, value in self.first_weights.items() if k in last}
        # The first ones exactly: 0 times a difference is no 0 where training has diverged.
        return {k: value + share * (last[k] - value) for k, value in first.items()} if share else first

    def _weights(self) -> dict[int, np.ndarray]:
        return {k: np.array(variable) for k, variable in self._live.items()}

    def _assign(self, values: dict[int, np.ndarray]) -> None:
        weights = self.owner.weights
        for k, value in values.items():
            weights[k].assign(value)

    def _hash_without(self, places: dict[int, Any]) -> str:
        digest = hashlib.sha256()
        for k, variable in enumerate(self.owner.weights):
            if k not in places:
                digest.update(np.array(variable).tobytes())
        return digest.hexdigest()


def _without_counters(names: Any) -> Any:
    """Names without what Keras appends to the second layer of a kind in a process: a notebook's cell runs twice."""
    return json.loads(re.sub(r'_\d+(?=["/])', "", json.dumps(names)))
