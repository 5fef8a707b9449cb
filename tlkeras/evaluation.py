"""How good a classifier is, and how sure that figure is: metrics with intervals, and a paired test."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tlkeras.intervals import Interval, class_mean_intervals, paired_interval, wilson_interval
from tlkeras.predictions import Predictions


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one classifier on one set of pictures; `Interval`s are 95 %.

    Attributes:
        accuracy: Share of pictures that are right (Wilson interval).
        balanced_accuracy: Mean over the classes of the share that is right: chance is 1 / classes, however rare one.
        macro_f1: Mean over the classes of F1.
        calibration_error: Expected calibration error: the mean gap between confidence and accuracy.
        log_loss: Mean of -log(probability of the truth), in nats.
        confusion: Pictures, truth down and prediction across, (k, k).
        per_class: For each class name its precision, recall, f1 and num_pictures.
        num_pictures: How many pictures were judged.
    """

    accuracy: Interval
    balanced_accuracy: Interval
    macro_f1: Interval
    calibration_error: float
    log_loss: float
    confusion: np.ndarray
    per_class: dict[str, dict[str, float]]
    num_pictures: int

    def to_dict(self) -> dict[str, Any]:
        """Get the same as plain numbers, lists and dictionaries, ready for JSON."""
        return asdict(self) | {"confusion": self.confusion.tolist()}

    def __str__(self) -> str:
        """Get the three scores in one line."""
        return (
            f"accuracy {self.accuracy}, balanced accuracy {self.balanced_accuracy}, macro F1 {self.macro_f1}"
            f" on {self.num_pictures} pictures"
        )


def evaluate(predictions: Predictions, *, seed: int = 0) -> Evaluation:
    """Get the metrics of a classifier with their 95 % intervals.

    Read the interval before the value: with 50 pictures, 90 % means 79 to 96 %. It holds for new pictures of
    the same source and this one model; another seed of the training adds spread of its own (`mean_interval`).

    Args:
        predictions: Of `predict` or `open_test`, for the task "classification" or "binary".
        seed: Of the bootstrap.

    Returns:
        The metrics; classes without a picture count neither in balanced accuracy nor, unless predicted, in F1.

    Raises:
        ValueError: If the truth is missing or holds anything but class indices, or the task has other metrics.
    """
    from sklearn.metrics import confusion_matrix, log_loss, precision_recall_fscore_support

    _check_predictions(predictions)
    if predictions.task not in ("classification", "binary"):
        raise ValueError(
            f"evaluate() is about classes. For {predictions.task!r} give predictions.truth and .probabilities to "
            "sklearn.metrics: average_precision_score (multi-label), mean_absolute_error and r2_score (regression)."
        )
    truth, classes = _truth(predictions), np.arange(len(predictions.class_names))
    if truth.ndim != 1 or not np.isin(truth, classes).all():
        raise ValueError(f"truth must be class indices from 0 to {classes[-1]}, shape (pictures,).")
    confusion = confusion_matrix(truth, predictions.predicted, labels=classes)
    columns = precision_recall_fscore_support(truth, predictions.predicted, labels=classes, zero_division=0)
    rows = zip(predictions.class_names, *(column.tolist() for column in columns), strict=True)
    balanced, f1 = class_mean_intervals(confusion, seed)
    return Evaluation(
        accuracy=wilson_interval(confusion.trace(), len(truth)),
        balanced_accuracy=balanced,
        macro_f1=f1,
        calibration_error=calibration_error(predictions.probabilities, truth),
        log_loss=float(log_loss(truth, predictions.probabilities, labels=classes)),
        confusion=confusion,
        per_class={
            name: dict(zip(("precision", "recall", "f1", "num_pictures"), numbers, strict=True))
            for name, *numbers in rows
        },
        num_pictures=len(truth),
    )


def confidence_bins(
    probabilities: np.ndarray, truth: np.ndarray, *, num_bins: int = 15
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Get, for bins of equal width over the confidence, how many pictures fell in, how sure and how right they were.

    Args:
        probabilities: (n, k).
        truth: Class indices (n,).
        num_bins: Bins over (0, 1]; a confidence on an edge belongs to the bin below it.

    Returns:
        Three arrays (num_bins,): pictures, sum of confidence, number right.
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    edges = np.linspace(0, 1, num_bins + 1)[1:-1]
    index = np.searchsorted(edges, confidence, side="left")
    return tuple(np.bincount(index, weights=w, minlength=num_bins) for w in (np.ones(len(index)), confidence, right))


def calibration_error(probabilities: np.ndarray, truth: np.ndarray, *, num_bins: int = 15) -> float:
    """Get the expected calibration error: the gap between confidence and accuracy, averaged over the pictures.

    Guo et al., 2017, "On Calibration of Modern Neural Networks", https://arxiv.org/abs/1706.04599, equation 3. It
    rises with few pictures a bin, so compare it only between models on the same pictures.

    Args:
        probabilities: (n, k).
        truth: Class indices (n,).
        num_bins: Bins of equal width.

    Returns:
        A share in [0, 1]; 0 is calibrated.
    """
    _, confidence, right = confidence_bins(probabilities, truth, num_bins=num_bins)
    return float(np.abs(right - confidence).sum() / len(truth))


@dataclass(frozen=True)
class Comparison:
    """Two classifiers on the same pictures (exact McNemar test).

    Attributes:
        only_a: Pictures that only the first has right.
        only_b: Pictures that only the second has right.
        p_value: How often chance alone would split those pictures at least so unevenly, were both equally good.
        difference: Accuracy of the first minus that of the second, with its paired 95 % interval.
    """

    only_a: int
    only_b: int
    p_value: float
    difference: Interval


def compare(a: Predictions, b: Predictions) -> Comparison:
    """Get whether one classifier is better than another on the same pictures.

    Sharper than looking whether two intervals overlap: what both have right or both wrong is left out. It says
    nothing about another training run of either; compare seeds for that.

    Args:
        a: Of the first model.
        b: Of the second model, for the same pictures in the same order.

    Raises:
        ValueError: If the two did not see the same pictures, or are not about classes.
    """
    from scipy.stats import binomtest

    _check_predictions(a)
    _check_predictions(b)
    if not {a.task, b.task} <= {"classification", "binary"} or a.class_names != b.class_names:
        raise ValueError("compare() needs two classifiers of the same classes in the same order.")
    if a.paths != b.paths or not np.array_equal(_truth(a), _truth(b)):
        raise ValueError(
            f"The two did not see the same pictures in the same order ({len(a)} and {len(b)}). Predict with both "
            "on one split of one `data`."
        )
    right_a, right_b = a.predicted == a.truth, b.predicted == b.truth
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    differing = only_a + only_b
    p_value = float(binomtest(only_a, differing).pvalue) if differing else 1.0
    return Comparison(only_a, only_b, p_value, paired_interval(only_a, only_b, len(a)))


def _check_predictions(predictions: Predictions) -> None:
    if not isinstance(predictions, Predictions):
        raise ValueError(f"Expected what predict(model, data) gave, got {type(predictions).__name__}.")


def _truth(predictions: Predictions) -> np.ndarray:
    if predictions.truth is None or len(predictions) == 0:
        raise ValueError("These predictions hold no truth, or no picture, so nothing can be judged by them.")
    return predictions.truth
