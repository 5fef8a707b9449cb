"""How good a classifier is, and how sure that figure is: predictions, metrics with intervals, paired tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np

Z_95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
NUM_RESAMPLES = 1000


@dataclass(frozen=True)
class Interval:
    """A value and the 95 % interval around it."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Get the text "0.800 (0.490 to 0.943)"."""
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


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
        raise ValueError(f"Logits have the shape (pictures, outputs), got {logits.shape}.")
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
        ValueError: If the split is "test", unknown or absent, or the logits are not finite.
    """
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
        ValueError: If there is no test split, or the logits are not finite.
    """
    if data.test is None:
        raise ValueError("This data has no test split. Load it again with a share for test, or add a test/ folder.")
    return _collect(model, data, data.ordered("test"), "test")


def _collect(model: keras.Model, data: Any, batches: Any, split: str) -> Predictions:
    logits, truth = [], []
    for images, labels in batches:
        # numpy in, numpy out: the same loop serves the TensorFlow, JAX and torch backends.
        logits.append(np.asarray(model.predict_on_batch(np.asarray(images))))
        truth.append(np.asarray(labels))
    if not logits:
        raise ValueError(f"The {split} split holds no pictures.")
    truth, paths = np.concatenate(truth), data.paths.get(split)
    if not np.array_equal(truth, data.labels[split]):
        raise ValueError(f"data.ordered({split!r}) no longer yields the pictures in the order of data.labels.")
    task = getattr(getattr(model, "transfer", None), "task", "classification")
    probabilities = to_probabilities(np.concatenate(logits), task)
    return Predictions(truth, probabilities, None if paths is None else tuple(paths), tuple(data.class_names), task)


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

    Accuracy has the interval of Wilson (1927). For balanced accuracy and macro F1 a bootstrap stratified by
    class (1,000 resamples) gives the standard error and Wilson's form the interval, for as many pictures as
    would have that error. The common percentile bootstrap calls a perfect score on ten pictures certain; in
    simulations from 2 x 20 to 40 x 5 pictures it covered the truth in 88 to 97 % of cases, this in 94 to 99 %.

    Args:
        predictions: Of `predict` or `open_test`, for the task "classification" or "binary".
        seed: Of the bootstrap.

    Returns:
        The metrics; classes without a picture count neither in balanced accuracy nor, unless predicted, in F1.

    Raises:
        ValueError: If the truth is missing or holds anything but class indices, or the task has other metrics.
    """
    from sklearn.metrics import confusion_matrix, log_loss, precision_recall_fscore_support

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
    balanced, f1 = _class_means(confusion.sum(axis=1), confusion.sum(axis=0), confusion.diagonal())
    balanced_error, f1_error = _bootstrap_errors(confusion, seed)
    present = confusion.sum(axis=1)[confusion.sum(axis=1) > 0]
    # As many pictures as one plain share would need for the same error, were all classes equally hard.
    effective = len(present) ** 2 / (1 / present).sum()
    return Evaluation(
        accuracy=wilson_interval(confusion.trace(), len(truth)),
        balanced_accuracy=_interval_from_error(float(balanced), balanced_error, effective),
        macro_f1=_interval_from_error(float(f1), f1_error, effective),
        calibration_error=calibration_error(predictions.probabilities, truth),
        log_loss=float(log_loss(truth, predictions.probabilities, labels=classes)),
        confusion=confusion,
        per_class={
            name: dict(zip(("precision", "recall", "f1", "num_pictures"), numbers, strict=True))
            for name, *numbers in rows
        },
        num_pictures=len(truth),
    )


def wilson_interval(num_right: int, num_pictures: float) -> Interval:
    """Get the 95 % interval of a share (Wilson, 1927, https://doi.org/10.1080/01621459.1927.10502953).

    Unlike value ± 1.96 standard errors it stays within [0, 1] and has a width at 0 % and 100 %.

    Args:
        num_right: Successes.
        num_pictures: Trials; may be fractional, an effective number.

    Returns:
        The share and its interval.

    Raises:
        ValueError: If there is no trial, or more successes than trials.

    Examples:
    >>> print(wilson_interval(8, 10))
    0.800 (0.490 to 0.943)
    """
    if not 0 <= num_right <= num_pictures or num_pictures == 0:
        raise ValueError(f"A share needs 0 <= right <= pictures and one picture at least: {num_right}, {num_pictures}.")
    share, spread = num_right / num_pictures, Z_95**2 / num_pictures
    centre = (share + spread / 2) / (1 + spread)
    half = np.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    # The bounds touch 0 and 1 exactly there; rounding must not push the value out of its own interval.
    return Interval(float(share), float(min(max(centre - half, 0), share)), float(max(min(centre + half, 1), share)))


def mean_interval(values: Sequence[float]) -> Interval:
    """Get the mean of a few runs (seeds, folds) and its 95 % t-interval.

    Args:
        values: One figure a run, two runs or more.

    Returns:
        The mean and its interval.

    Raises:
        ValueError: If there are fewer than two values, or one is not finite.

    Examples:
    >>> print(mean_interval([0.90, 0.92, 0.94]))
    0.920 (0.870 to 0.970)
    """
    from scipy.stats import t

    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"The spread over runs needs two finite values or more in a row, got {values.tolist()}.")
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return Interval(float(values.mean()), float(values.mean() - half), float(values.mean() + half))


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

    Raises:
        ValueError: If `num_bins` is below 1.
    """
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}.")
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

    The interval is Wald's with half a picture added to each cell (Agresti and Min, 2005,
    https://doi.org/10.1002/sim.1781), which has a width even where the two never disagree.

    Args:
        a: Of the first model.
        b: Of the second model, for the same pictures in the same order.

    Returns:
        The counts, the p-value and the difference.

    Raises:
        ValueError: If the two did not see the same pictures, or are not about classes.
    """
    from scipy.stats import binomtest

    if not {a.task, b.task} <= {"classification", "binary"} or a.class_names != b.class_names:
        raise ValueError("compare() needs two classifiers of the same classes in the same order.")
    if a.paths != b.paths or not np.array_equal(_truth(a), _truth(b)):
        raise ValueError(
            f"The two did not see the same pictures in the same order ({len(a)} and {len(b)}). Predict with both "
            "on one split of one `data`."
        )
    right_a, right_b = a.predicted == a.truth, b.predicted == b.truth
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    n, gap, differing = len(a), only_a - only_b, only_a + only_b
    centre, half = gap / (n + 2), Z_95 * np.sqrt(differing + 1 - gap**2 / (n + 2)) / (n + 2)
    return Comparison(
        only_a=only_a,
        only_b=only_b,
        p_value=float(binomtest(only_a, differing).pvalue) if differing else 1.0,
        difference=Interval(gap / n, float(max(centre - half, -1)), float(min(centre + half, 1))),
    )


def worst(predictions: Predictions, num_pictures: int = 9) -> np.ndarray:
    """Get the indices of the most confident mistakes, the surest first.

    Look at them before tuning anything: wrong labels and odd pictures gather here.

    Args:
        predictions: Of a classifier, with truth.
        num_pictures: How many at most.

    Returns:
        Indices into `predictions`, fewer where there are fewer mistakes.

    Raises:
        ValueError: If the truth is missing or the task is not about classes.
    """
    if predictions.task not in ("classification", "binary"):
        raise ValueError(f"worst() ranks wrong classes; a {predictions.task!r} model has none.")
    mistakes = np.flatnonzero(predictions.predicted != _truth(predictions))
    surest_first = np.argsort(-predictions.probabilities[mistakes].max(axis=1), kind="stable")
    return mistakes[surest_first][:num_pictures]


def _truth(predictions: Predictions) -> np.ndarray:
    if predictions.truth is None or len(predictions) == 0:
        raise ValueError("These predictions hold no truth, or no picture, so nothing can be judged by them.")
    return predictions.truth


def _class_means(truth_counts: np.ndarray, predicted_counts: np.ndarray, right: np.ndarray) -> tuple[Any, Any]:
    """Get balanced accuracy and macro F1 from counts (..., k), over the classes that occur."""
    recall = right / np.maximum(truth_counts, 1e-12)
    both = truth_counts + predicted_counts
    f1 = 2 * right / np.maximum(both, 1e-12)
    return recall.sum(-1) / (truth_counts > 0).sum(-1), f1.sum(-1) / (both > 0).sum(-1)


def _bootstrap_errors(confusion: np.ndarray, seed: int) -> tuple[float, float]:
    """Get the standard errors of balanced accuracy and macro F1.

    Pictures of one class with one prediction are interchangeable, so drawing pictures again is a multinomial draw
    from each row of the confusion matrix. A class of n pictures gives n - 1 draws, scaled up: n draws would make
    the variance too small by (n - 1) / n (Rao and Wu, 1988, https://doi.org/10.1080/01621459.1988.10478591).
    """
    generator, counts = np.random.default_rng(seed), confusion.sum(axis=1)
    right, predicted = np.zeros((2, NUM_RESAMPLES, len(confusion)))
    for index in np.flatnonzero(counts):
        columns = np.flatnonzero(confusion[index])  # a row of 1,000 classes holds few that were ever predicted
        num_draws = max(counts[index] - 1, 1)
        draws = generator.multinomial(num_draws, confusion[index, columns] / counts[index], size=NUM_RESAMPLES)
        predicted[:, columns] += draws * (counts[index] / num_draws)
        right[:, index] = (draws * (counts[index] / num_draws))[:, columns == index].sum(axis=1)
    balanced, f1 = _class_means(counts, predicted, right)
    return float(balanced.std()), float(f1.std())


def _interval_from_error(value: float, error: float, most_pictures: float) -> Interval:
    """Get Wilson's interval for the number of pictures at which a share would have this standard error.

    `most_pictures` bounds it: where every picture is right the error is 0, but the number of pictures is not infinite.
    """
    wanted = value * (1 - value) / error**2 if error > 0 else most_pictures
    effective = min(max(wanted, 1.0), most_pictures)
    bounds = wilson_interval(value * effective, effective)
    return Interval(value, min(bounds.low, value), max(bounds.high, value))
