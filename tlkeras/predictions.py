"""Predictions: what a model said about each picture, aligned with its truth and its file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from tlkeras.engines import KerasEngine
from tlkeras.pipelines import check_data, check_pictures


@dataclass(frozen=True)
class Predictions:
    """What a model said about each picture, in one order with the truth and the files.

    Attributes:
        truth: Integer classes (n,); 0/1 matrix (n, k) for "multi-label"; floats (n,) or (n, k) for "regression";
            None where nobody knows it.
        probabilities: (n, k) in [0, 1]; the predicted values themselves for "regression".
        paths: The picture files, or None for pictures that never were files.
        class_names: The k classes, in the order of the columns.
        task: "classification", "binary", "multi-label" or "regression".
    """

    truth: np.ndarray | None
    probabilities: np.ndarray
    paths: tuple[str, ...] | None
    class_names: tuple[str, ...]
    task: str = "classification"

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together."""
        num_pictures, num_columns = self.probabilities.shape
        for name, part in (("truth", self.truth), ("paths", self.paths)):
            if part is not None and len(part) != num_pictures:
                raise ValueError(f"{len(part)} {name} for {num_pictures} rows of probabilities: they must be aligned.")
        if len(self.class_names) != num_columns:
            raise ValueError(f"{len(self.class_names)} class names for {num_columns} columns of probabilities.")

    def __len__(self) -> int:
        """Get the number of pictures."""
        return len(self.probabilities)

    @property
    def predicted(self) -> np.ndarray:
        """The most probable class of each picture, (n,)."""
        return self.probabilities.argmax(axis=1)

    def to_rows(self) -> list[dict[str, Any]]:
        """Get one JSON-able dictionary a picture: path, label and the probability of each class.

        A multi-label row has "labels" (those of probability 0.5 or more), a regression row has "values".
        """
        rows = []
        for index, numbers in enumerate(self.probabilities.tolist()):
            named = dict(zip(self.class_names, numbers, strict=True))
            row: dict[str, Any] = {"path": self.paths[index] if self.paths is not None else None}
            if self.task == "regression":
                row["values"] = named
            elif self.task == "multi-label":
                row |= {"labels": [name for name, p in named.items() if p >= 0.5], "probabilities": named}
            else:
                row |= {"label": max(named, key=named.__getitem__), "probabilities": named}
            rows.append(row)
        return rows


def to_probabilities(logits: np.ndarray, task: str = "classification") -> np.ndarray:
    """Get probabilities (n, k) from a model's logits; in float64, so that each row of classes sums to one.

    Args:
        logits: (n, k), or (n, 1) for "binary".
        task: "classification" (softmax), "binary" (the probabilities of class 0 and class 1, (n, 2)), "multi-label"
            (a sigmoid for each label) or "regression" (nothing is done).

    Returns:
        Probabilities (n, k).

    Raises:
        ValueError: If the task is unknown, the shape does not fit it, or a logit is not finite.

    Examples:
    >>> to_probabilities(np.array([[0.0]]), "binary")
    array([[0.5, 0.5]])
    """
    from scipy.special import expit, softmax

    logits = np.asarray(logits, dtype=np.float64)
    if logits.ndim != 2:
        hint = " A detector's maps are read by detect()." if logits.ndim == 4 else ""
        raise ValueError(f"Logits have the shape (pictures, outputs), got {logits.shape}.{hint}")
    if not np.isfinite(logits).all():
        broken = int((~np.isfinite(logits).all(axis=1)).sum())
        raise ValueError(
            f"The model gives NaN or infinity for {broken} of {len(logits)} pictures: its training diverged. "
            "Train again at a lower learning rate."
        )
    if task == "classification":
        return softmax(logits, axis=1)
    if task == "multi-label":
        return expit(logits)
    if task == "regression":
        return logits
    if task != "binary":
        raise ValueError(f"task is 'classification', 'binary', 'multi-label' or 'regression', got {task!r}.")
    if logits.shape[1] != 1:
        raise ValueError(f"A binary model has one logit, this one gives {logits.shape[1]}.")
    return np.hstack([expit(-logits), expit(logits)])


def to_answers(outputs: np.ndarray, task: str) -> np.ndarray:
    """Get what a model answers, of any task: probabilities; of a detector scores and distances, in float64.

    Args:
        outputs: (n, k), or the maps (n, rows, columns, classes + 4) of a "detection".
        task: As for `to_probabilities`, or "detection": a sigmoid for each class; then, by softplus, how far the
            object's left, top, right and bottom side are away, as shares of the picture.

    Returns:
        As many numbers as there are outputs; for "binary" one more.

    Raises:
        ValueError: As `to_probabilities`, and if a map is not finite.
    """
    from scipy.special import expit

    if task != "detection":
        return to_probabilities(outputs, task)
    maps = np.asarray(outputs, dtype=np.float64)
    if maps.ndim != 4 or maps.shape[-1] < 5:
        raise ValueError(f"A detector gives maps (pictures, rows, columns, classes + 4), got {maps.shape}.")
    if not np.isfinite(maps).all():
        raise ValueError("The detector gives NaN or infinity: its training diverged. Train at a lower learning rate.")
    return np.concatenate([expit(maps[..., :-4]), np.logaddexp(0, maps[..., -4:])], axis=-1)


def answer_gaps(answers: np.ndarray, golden: np.ndarray, task: str) -> np.ndarray:
    """Get how far each picture's answers are from its golden ones, the most of all outputs.

    Probabilities, and a detector's maps, as they are; numbers of a regression as a share of the largest golden one of
    the same output, since they may be of any size.
    """
    scale = np.maximum(np.abs(golden).max(axis=0), np.finfo("float32").tiny) if task == "regression" else 1.0
    return (np.abs(answers - golden) / scale).reshape(len(golden), -1).max(axis=1)


def predict(model: keras.Model, data: Any, split: str = "validation") -> Predictions:
    """Get the model's probabilities for the pictures of a split, aligned with their truth and paths.

    For whatever is looked at more than once: choosing a model, an epoch, a threshold. The test split is closed
    here, because a figure that steered a choice is no longer an estimate.

    Args:
        model: Gives logits for pictures (batch, height, width, 3) in [0, 255]; `model.transfer.task` says which
            kind of logits, a softmax is taken where there is none.
        data: The `Data` of a loader.
        split: "validation" or "train".

    Returns:
        One row a picture, in the order of `data.paths[split]`.

    Raises:
        ValueError: If `data` is no `Data`, the split is "test", unknown or absent, the pictures are not raw and in
            [0, 255], or the logits are not finite.
    """
    check_data(data)
    if split == "test":
        raise ValueError("predict() keeps the test split closed. When every choice is made: open_test(model, data).")
    if split not in ("train", "validation"):
        raise ValueError(f"split is 'validation' or 'train', got {split!r}.")
    return _collect(model, data, data.ordered(split), split)


def open_test(model: keras.Model, data: Any) -> Predictions:
    """Get the model's probabilities for the test split: the one function that reads it.

    Call it once, at the end, for the figure to publish. Looked at often and chosen by, the test split becomes a
    second validation split and its accuracy too good.

    Args:
        model: As for `predict`.
        data: The `Data` of a loader, with a test split.

    Returns:
        One row a picture, in the order of `data.paths["test"]`.

    Raises:
        ValueError: If there is no test split, or as in `predict`.
    """
    check_data(data)
    if data.test is None:
        raise ValueError("This data has no test split. Load it again with a share for test, or add a test/ folder.")
    return _collect(model, data, data.ordered("test"), "test")


def _collect(model: keras.Model, data: Any, batches: Any, split: str) -> Predictions:
    truth, shape = [], getattr(model, "input_shape", None)
    shape = shape if isinstance(shape, tuple) and len(shape) == 4 else (None, None, None, 3)

    def images() -> Iterator[np.ndarray]:
        for pictures, labels in batches:
            if not truth:
                check_pictures((pictures, labels), shape)
            truth.append(np.asarray(labels))
            yield np.asarray(pictures)

    logits = [outputs[0] for outputs in KerasEngine(model).run(images())]
    if not logits:
        raise ValueError(f"The {split} split holds no pictures.")
    truth, paths = np.concatenate(truth), data.paths.get(split)
    if not np.array_equal(truth, data.labels[split]):
        raise ValueError(f"data.ordered({split!r}) no longer yields the pictures in the order of data.labels.")
    task = getattr(getattr(model, "transfer", None), "task", "classification")
    logits = np.concatenate(logits)
    if task == "classification" and logits.shape[1] > 1 and (logits >= 0).all():
        if np.abs(logits.sum(axis=1) - 1).max() < 1e-4:
            raise ValueError(
                "The model gives probabilities, and a softmax would be taken of them again: leave its last softmax out."
            )
    probabilities = to_probabilities(logits, task)
    return Predictions(truth, probabilities, None if paths is None else tuple(paths), tuple(data.class_names), task)
