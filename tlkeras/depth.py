"""Depth: how far up a frozen network the features serve a task best, and how sure that is.

Low stages see edges and colours, high ones the source's own things. The lecture notes expect near data to want the last
stage and far data an earlier one; `probe` measures it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tlkeras.arguments import whole_number
from tlkeras.features import Features
from tlkeras.intervals import Interval, paired_interval, wilson_interval
from tlkeras.probes import check_classes, fit_probe

NUM_RESAMPLES, TEST_SHARE = 10, 0.25


@dataclass(frozen=True)
class ProbeTable:
    """Accuracy of a probe at each stage.

    Attributes:
        intervals: For each stage, first to last, its accuracy with the 95 % interval.
        best: The stage of the highest accuracy; the later one of two alike.
        gain: What `best` is ahead of the last stage, with its paired 95 % interval; zero where they are the same.
        p_value: How often chance alone would give a gain of that size, were the two stages equally good; 1 where they
            are the same. The best of several stages was picked by the same pictures, so be stricter than 0.05.
        method: How the figures came about.
    """

    intervals: dict[str, Interval]
    best: str
    gain: Interval
    p_value: float
    method: str

    def to_dict(self) -> dict:
        """Get a dictionary that JSON can hold."""
        return {
            "stages": [{"name": name, "accuracy": vars(interval)} for name, interval in self.intervals.items()],
            "best": self.best,
            "gain": vars(self.gain),
            "p_value": self.p_value,
            "method": self.method,
        }

    def __str__(self) -> str:
        width = max(map(len, self.intervals))
        rows = [f"{name:{width}}  {interval.in_percent()}" for name, interval in self.intervals.items()]
        last = list(self.intervals)[-1]
        if self.best == last:
            verdict = f"the last stage, {last}, is the best"
        else:
            verdict = f"{self.best} is ahead of the last stage by {self.gain.in_points()}, p = {self.p_value:.2g}"
        return "\n".join([*rows, f"{verdict} ({self.method})"])


def probe(
    features: Features,
    held_out: Features | None = None,
    *,
    kind: str = "softmax",
    groups: Sequence | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> ProbeTable:
    """Get the accuracy of a simple classifier at every stage of a network, and whether an earlier one is better.

    With held-out features each stage has one probe, judged on the held-out pictures: Wilson's interval and McNemar's
    test. Without, the pictures are cut anew `num_resamples` times, three quarters to learn from, and the spread is
    corrected for what the cuts share (Nadeau and Bengio, 2003, https://doi.org/10.1023/A:1024068626366): slower, and
    it speaks of other training sets as well.

    Args:
        features: From `extract_features(..., stages="all")`.
        held_out: The same of other pictures, or None.
        kind: Of classifier, as in `fit_probe`.
        groups: A key a picture, such as the patient; pictures of one group stay on one side of each cut. With fewer
            than four groups, or four pictures of a class, a cut leaves less than three quarters to learn from.
        num_resamples: Cuts, at least 2.
        seed: Of cuts and folds.

    Returns:
        A `ProbeTable`.

    Raises:
        ValueError: If either is no `Features`, the held-out stages are others, there are fewer than 2 resamples, not
            one group a picture or one group only, a cut would leave fewer than 2 pictures of a class to learn from, or
            as in `fit_probe`.
    """
    for given in (features,) if held_out is None else (features, held_out):
        if not isinstance(given, Features):
            raise ValueError(
                "probe() takes what extract_features(..., stages='all') gave, and of other pictures the same; got "
                f"{type(given).__name__}. For an array of features: fit_probe(features, labels)."
            )
        check_classes(given.labels, len(given.last))
    names = list(features.stages)
    if held_out is not None:
        if list(held_out.stages) != names:
            raise ValueError(f"The held-out stages {list(held_out.stages)} are not those of training, {names}.")
        right = []
        for name, values in features.stages.items():
            classifier = fit_probe(values, features.labels, kind=kind, seed=seed)
            right.append(classifier.predict(held_out.stages[name]) == held_out.labels)
        return _judge_once(names, np.stack(right))
    num_resamples = whole_number("num_resamples", num_resamples, 2)
    accuracies, sizes = [], []
    for train, test in cut(features.labels, groups, num_resamples, seed):
        sizes.append((len(test) / len(train), len(test)))
        accuracies.append(
            [
                fit_probe(values[train], features.labels[train], kind=kind, seed=seed).score(
                    values[test], features.labels[test]
                )
                for values in features.stages.values()
            ]
        )
    return _judge_resamples(names, np.array(accuracies), *np.mean(sizes, axis=0))


def resampled_interval(values: np.ndarray, test_to_train: float, num_test: float) -> tuple[Interval, float]:
    """Get the mean over resamples that overlap, its 95 % interval and the p-value of its being 0.

    The corrected resampled t-test: the variance of the mean is (1/n + test/train) s^2 instead of s^2/n, because the
    same pictures return in every cut.

    Args:
        values: One a resample, two or more.
        test_to_train: Pictures to judge by for each picture to learn from.
        num_test: Pictures to judge by; that a few resamples agree to the last picture is no certainty, so their
            standard deviation counts as half a picture at least.
    """
    from scipy.stats import t

    values = np.asarray(values, np.float64)
    mean, freedom = float(values.mean()), len(values) - 1
    variance = max(values.var(ddof=1), (0.5 / num_test) ** 2)
    error = np.sqrt((1 / len(values) + test_to_train) * variance)
    half = float(t.ppf(0.975, freedom) * error)
    return Interval(mean, mean - half, mean + half), float(2 * t.sf(abs(mean) / error, freedom))


def cut(labels: np.ndarray, groups: Sequence | None, num_resamples: int, seed: int):
    """Get pairs of row numbers to learn from and to judge by: stratified, or groups kept together.

    Raises:
        ValueError: If there is not one group a picture or one group only, or a cut leaves fewer than 2 pictures of a
            class to learn from.
    """
    from sklearn.model_selection import StratifiedShuffleSplit

    if groups is not None and len(groups) != len(labels):
        raise ValueError(f"groups needs one key a picture: expected {len(labels)}, got {len(groups)}.")
    classes, counts = np.unique(labels, return_counts=True)
    _check_counts(classes, counts)
    if groups is not None and any(group is None for group in groups):
        raise ValueError("groups needs a key for each picture, and some are None.")
    keys = np.arange(len(labels)) if groups is None else np.asarray(groups)
    if keys.ndim > 1:  # pairs, such as (clinic, patient)
        keys = np.array([str(group) for group in groups])
    keys = np.unique(keys, return_inverse=True)[1]
    num_groups = keys.max() + 1
    if num_groups == len(labels):
        num_test = max(math.ceil(TEST_SHARE * len(labels)), len(classes))  # one of each class at least
        pairs = StratifiedShuffleSplit(num_resamples, test_size=num_test, random_state=seed).split(labels, labels)
    elif num_groups == 1:
        raise ValueError(
            f"All {len(labels)} pictures are of one group, so a cut has nothing to judge by: measuring takes pictures "
            "of 2 groups or more."
        )
    else:
        pairs = (_cut_groups(labels, classes, keys, seed + k) for k in range(num_resamples))
    for train, test in pairs:
        _check_counts(classes, np.sum(labels[train] == classes[:, None], axis=1))
        yield train, test


def _cut_groups(labels: np.ndarray, classes: np.ndarray, keys: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A quarter of the groups at random, by the first of 50 tries that leaves all classes on both sides if one does.

    Not StratifiedGroupKFold, which shuffles only groups of one size: with unequal ones each resample is the same. Where
    even the best leaves less than two pictures of a class to learn from, groups that hold it are not judged by.
    """
    from sklearn.model_selection import GroupShuffleSplit

    def rank(pair: tuple[np.ndarray, np.ndarray]) -> tuple[int, int]:
        left, judged = (np.sum(labels[rows] == classes[:, None], axis=1).min() for rows in pair)
        return min(left, 2), min(judged, 1)

    tries = GroupShuffleSplit(50, test_size=TEST_SHARE, random_state=seed).split(labels, groups=keys)
    judged = np.isin(np.arange(len(labels)), max(tries, key=rank)[1])
    for label in classes:
        for key in np.unique(keys[judged & (labels == label)]):
            if np.sum(labels[~judged] == label) < 2 and (keys[judged] != key).any():
                judged &= keys != key
    return np.flatnonzero(~judged), np.flatnonzero(judged)


def _check_counts(classes: np.ndarray, counts: np.ndarray) -> None:
    if counts.min() < 2:
        raise ValueError(
            f"A cut leaves {counts.min()} pictures of class {classes[counts.argmin()]} to learn from, and a probe "
            "takes 2 or more: take more pictures of that class, of several groups where there are groups."
        )


def _judge_once(names: list[str], right: np.ndarray) -> ProbeTable:
    from scipy.stats import binomtest

    count = right.shape[1]
    intervals = {name: wilson_interval(int(row.sum()), count) for name, row in zip(names, right, strict=True)}
    best = _best([interval.value for interval in intervals.values()])
    ahead, behind = int((right[best] & ~right[-1]).sum()), int((right[-1] & ~right[best]).sum())
    p_value = float(binomtest(ahead, ahead + behind).pvalue) if ahead + behind else 1.0
    gain = paired_interval(ahead, behind, count) if best < len(names) - 1 else Interval(0.0, 0.0, 0.0)
    return ProbeTable(intervals, names[best], gain, p_value, f"judged on {count} held-out pictures, McNemar's test")


def _judge_resamples(names: list[str], accuracies: np.ndarray, test_to_train: float, num_test: float) -> ProbeTable:
    intervals = {}
    for name, column in zip(names, accuracies.T, strict=True):
        interval, _ = resampled_interval(column, test_to_train, num_test)
        intervals[name] = Interval(interval.value, max(interval.low, 0.0), min(interval.high, 1.0))
    best = _best(accuracies.mean(axis=0))
    gain, p_value = Interval(0.0, 0.0, 0.0), 1.0
    if best < len(names) - 1:
        gain, p_value = resampled_interval(accuracies[:, best] - accuracies[:, -1], test_to_train, num_test)
    return ProbeTable(intervals, names[best], gain, p_value, f"{len(accuracies)} resamples, corrected t-test")


def _best(values: Sequence[float]) -> int:
    return len(values) - 1 - int(np.argmax(np.asarray(values)[::-1]))
