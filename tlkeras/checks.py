"""Checks: what the features are worth at times during a pretraining, and the folder from which a killed run goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import numbers
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tlkeras.backbones import Backbone
from tlkeras.embeddings import effective_rank, spread
from tlkeras.engines import compute_precision
from tlkeras.probes import fit_probe

NUM_LOOKED_AT = 400  # pictures on which collapse is looked for


class Checks(keras.callbacks.Callback):
    """Looks at the features at the end of each epoch, keeps a row of it, and saves the run."""

    def __init__(
        self, backbone: Backbone, owner: keras.Model, task: Any, *, every: int, images: np.ndarray, judge: Any
    ):
        """Take the backbone, the model on it, the task, the steps of an epoch, the pictures and the halves of a judge.

        Args:
            backbone: Whose features are looked at.
            owner: The model with the task's head.
            task: A `Pretext`; one that `embeds` has its embeddings looked at too.
            every: Steps in an epoch.
            images: (pictures, height, width, 3); 400 of them are looked at.
            judge: ((pictures, labels), (pictures, labels)), a probe's two halves, or None.
        """
        super().__init__()
        self.owner, self.task, self.every, self.judge = owner, task, every, judge
        pooled = keras.layers.GlobalAveragePooling2D()(backbone.model.output)
        self.features = keras.Model(backbone.model.inputs[0], pooled)
        self.images = images[np.linspace(0, len(images) - 1, min(len(images), NUM_LOOKED_AT)).astype(int)]
        self.rows: list[dict] = []
        self.folder: RunFolder | None = None

    def start(self, folder: RunFolder | None) -> None:
        """Take up the run of a folder where it was left, or look at the features before the first step.

        Raises:
            ValueError: If the folder holds another run or is damaged, or the features are not finite.
        """
        self.folder = folder
        self.rows = folder.load(self.owner) if folder else []
        if not self.rows:
            self.rows.append({"step": 0, "loss": float("nan"), **self._look()})
            if not np.isfinite(self.rows[0]["spread"]):
                raise ValueError("The backbone's features hold NaN or infinity before the first step: load it anew.")

    @property
    def diverged(self) -> bool:
        """Whether the last check found a loss or an answer of the network that is no number."""
        return len(self.rows) > 1 and not np.isfinite([self.rows[-1]["loss"], self.rows[-1]["spread"]]).all()

    def on_epoch_begin(self, epoch, logs=None):
        """Note the time."""
        self._started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        """Add a row and save the run; one that diverged stops, and what was saved before stays."""
        seconds = time.perf_counter() - self._started
        row = {"step": (epoch + 1) * self.every, "loss": float(logs["loss"]), **self._look()}
        self.rows.append({**row, "seconds": seconds})
        logs |= {key: row[key] for key in ("spread", "accuracy") if key in row}  # for the line that is printed
        self.model.stop_training = self.diverged
        if self.folder and not self.diverged:
            self.folder.save(self.owner, self.rows)

    def _look(self) -> dict[str, float]:
        """Measure what the network says; where some of it is not finite, all measures are NaN."""
        found = {"spread": 0.0, "rank": 0.0}
        seen = [_answers(self.features, self.images)]
        if self.task.embeds:
            found["embedding_spread"] = 0.0
            seen.append(_answers(self.owner, self.images))
        if self.judge is not None:
            found["accuracy"] = 0.0
            seen += [_answers(self.features, pictures) for pictures, _ in self.judge]
        if not all(np.isfinite(values).all() for values in seen):
            return dict.fromkeys(found, float("nan"))
        found |= {"spread": spread(seen[0]), "rank": effective_rank(seen[0])}
        if self.task.embeds:
            found["embedding_spread"] = self.task.spread(seen[1])
        if self.judge is not None:
            (_, labels), (_, truth) = self.judge
            found["accuracy"] = float(np.mean(fit_probe(seen[-2], labels).predict(seen[-1]) == truth))
        return found


def _answers(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """In float32: neither numpy's linear algebra nor scikit-learn takes the halves of a mixed-precision policy."""
    return np.asarray(model.predict(images, verbose=0), "float32")


class RunFolder:
    """A folder with `run.json`, which tells what the run is and how far it came, and the weights of its last check."""

    def __init__(self, folder: str | os.PathLike, identity: Mapping[str, Any]):
        """Take the folder, made if it is not there, and what `run_identity` says.

        Raises:
            ValueError: If it cannot be made, or is a file.
        """
        self.folder, self.identity = Path(folder).expanduser(), dict(identity)
        self.record = self.folder / "run.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{self.folder} cannot be a run's folder ({error}): take another folder.") from error

    def load(self, model: keras.Model) -> list[dict]:
        """Fill a model and its optimizer as they were at the last check, and get the rows so far; none at the start.

        Raises:
            ValueError: If the folder holds another run, or a file is missing or damaged; it is named.
        """
        if not self.record.exists():
            return []
        anew = f"delete {self.record} to start anew"
        try:
            run = json.loads(self.record.read_text(encoding="utf-8"))
            identity, rows = dict(run["identity"]), [dict(row) for row in run["rows"]]
            weights = self._weights(rows[-1])
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise ValueError(f"{self.record} is damaged ({error!r}): {anew}.") from error
        if unlike := [key for key, value in self.identity.items() if identity.get(key) != value]:
            was, now = identity.get(unlike[0]), self.identity[unlike[0]]
            raise ValueError(
                f"{self.folder} holds a run with {unlike[0]} = {was!r}, now it is {now!r}: take another folder, or "
                f"{anew}."
            )
        try:
            model.load_weights(weights)
        except Exception as error:  # h5py and Keras each have their own
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{weights} is missing, damaged or of another net ({reason}): {anew}.") from error
        return rows

    def save(self, model: keras.Model, rows: Sequence[dict]) -> None:
        """Write weights under a new name, then the record that names them: a kill in between loses one check."""
        model.save_weights(self._weights(rows[-1]))
        partial = self.folder / "run.json.partial"
        partial.write_text(json.dumps({"identity": self.identity, "rows": list(rows)}), encoding="utf-8")
        os.replace(partial, self.record)
        for row in rows[1:-1]:  # of the step 0 there are none
            self._weights(row).unlink(missing_ok=True)

    def _weights(self, row: Mapping[str, Any]) -> Path:
        return self.folder / f"{row['step']}.weights.h5"


def run_identity(backbone: Backbone, model: keras.Model, task: Any, settings: Any, arrays: Mapping[str, Any]) -> dict:
    """Get what makes a run the same run: plain numbers, texts and checksums.

    Args:
        backbone: As it was given. Of the weights it starts from counts what they are called, not what they are: a
            resumed call begins with a fresh backbone.
        model: The task's.
        task: A `Pretext`, prepared and built. Its single numbers, truth values and texts count, but for those that it
            names in `only_later`.
        settings: The `Pretraining`.
        arrays: Lists of arrays by what they are, of which checksums are taken, or None.
    """
    known = {"task": type(task).__name__, "net": backbone.name, "shape": list(backbone.model.input_shape[1:])}
    known |= {"weights": str(backbone.weights), "num_weights": model.count_params()}
    known["precision"] = compute_precision(backbone.model)
    ours = dataclasses.asdict(settings)
    known |= {key: ours[key] for key in ours if key not in ("folder", "verbose")}
    known |= {
        f"task.{key}": value.item() if isinstance(value, np.generic) else value
        for key, value in vars(task).items()
        if isinstance(value, numbers.Real | np.bool_ | str) and key not in task.only_later
    }
    return known | {name: held if held is None else _checksum(held) for name, held in arrays.items()}


def _checksum(arrays: Sequence[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()
