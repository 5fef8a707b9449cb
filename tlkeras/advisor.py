"""The advisor: which way to transfer, from measurements on these pictures with this network.

The lecture notes give a table of four cells, little or much data by near or far from the source, without saying what
much or far is. Here one pass through the frozen network measures both, and the reasons come with the advice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import keras
import numpy as np

from tlkeras.arguments import real_number
from tlkeras.backbones import Backbone, load_backbone
from tlkeras.catalogue import CATALOGUE
from tlkeras.depth import cut, probe
from tlkeras.features import Features, extract_features
from tlkeras.kerashub import HUB_PREFIX
from tlkeras.pipelines import check_data
from tlkeras.probes import fit_probe
from tlkeras.scores import h_score, log_me

if TYPE_CHECKING:
    from tlkeras.data import Data

log = logging.getLogger("tlkeras")

MUCH = 50  # training pictures a class from which fine-tuning is tried
STEEP = 0.03  # gain in accuracy by the last doubling of the pictures from which more of them are the best advice
FEWEST = 8  # pictures of each class that a sample holds, where there are so many: rare classes are measured, too
STAGES, VIEWS, EPOCHS = 4, 4, 3  # of the recipe in `transfer`


@dataclass(frozen=True)
class Option:
    """A way to transfer: the strategy, the stage that the head sits on, how many stages are unfrozen, rough seconds."""

    strategy: str
    stage: str
    stages: int
    seconds: float


@dataclass(frozen=True)
class Advice:
    """What to do and why.

    Attributes:
        cell: The cell of the notes' table, such as "little data, near".
        chosen: The `Option` to take.
        learning_rates: Of the head and of the backbone's top stage; empty for a probe.
        more_data: Whether more pictures promise more than any strategy.
        options: All that were weighed, with their cost here.
        reasons: Rows of (what was measured, the figure, how it was read).
        seconds: What the measuring took.
    """

    cell: str
    chosen: Option
    learning_rates: dict[str, float]
    more_data: bool
    options: tuple[Option, ...]
    reasons: tuple[tuple[str, str, str], ...]
    seconds: float

    def to_dict(self) -> dict:
        """Get a dictionary that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: dict) -> Advice:
        """Get back what `to_dict` gave."""
        options = tuple(Option(**option) for option in stored["options"])
        reasons = tuple(map(tuple, stored["reasons"]))
        return cls(**{**stored, "chosen": Option(**stored["chosen"]), "options": options, "reasons": reasons})

    def __str__(self) -> str:
        chosen = self.chosen
        where = f"on {chosen.stage}" if not chosen.stages else f"the last {chosen.stages} stages"
        lines = [f"{self.cell}: {chosen.strategy}, {where} (about {chosen.seconds:.0f} s)"]
        lines += [f"  {what}: {figure}; {reading}" for what, figure, reading in self.reasons]
        if self.more_data:
            lines.append("  more pictures promise more than any of this")
        return "\n".join(lines)


def advise(data: Data, backbone: str | Backbone = "MobileNetV2", *, budget: float = 60.0, seed: int = 0) -> Advice:
    """Get a strategy for these pictures and this network, with the measurements that speak for it.

    Only training pictures are looked at. The thresholds (50 pictures a class are much; a stage counts as better where
    the test over resamples says so at p < 0.05 divided by the number of earlier stages, of which it is the best) are
    conventions: the reasons are there to be disputed.

    Args:
        data: From a loader; classes, not values.
        backbone: A name for `load_backbone`, or what it returned.
        budget: Seconds that the measuring may take, roughly; beyond it fewer pictures are looked at, 8 of each class
            at least.
        seed: Of resamples and folds.

    Returns:
        An `Advice`.

    Raises:
        ValueError: If the budget is not positive, the labels are not one class a picture, a class has fewer than 4
            training pictures, or all pictures, or all of a class, are of one group.
    """
    real_number("budget", budget, "(0, inf]")
    check_classes(data)
    counts = np.bincount(data.labels["train"], minlength=data.num_classes)
    if counts.min() < 4:
        name = data.class_names[int(counts.argmin())]
        raise ValueError(f"Class {name!r} has {counts.min()} training pictures; measuring takes 4 or more.")
    started = time.perf_counter()
    if isinstance(backbone, str):
        backbone = load_backbone(backbone, weights="auto", image_size=data.image_size)
    features, pieces, rate = _measure(data, backbone, budget / 2, seed)
    table = probe(features, groups=pieces, num_resamples=5, seed=seed)
    accuracies = {name: interval.value for name, interval in table.intervals.items()}
    last = list(accuracies)[-1]
    sure = 0.05 / max(len(accuracies) - 1, 1)  # Bonferroni: it is the best of so many that was picked
    far = table.best != last and table.p_value < sure
    much = counts.mean() >= MUCH
    slope = _slope(features, pieces, table.best if far else last, seed)
    steep = slope is None or slope > STEEP
    doubling = "too few to measure" if slope is None else f"{100 * slope:+.1f} points"
    reasons = [
        ("training pictures", f"{counts.mean():.0f} a class, {counts.min()} the fewest", "much" if much else "little"),
        (
            "best stage for a probe", f"{table.best}, {100 * table.gain.value:+.1f} points over the last, "
            f"p = {table.p_value:.2g} (sure below {sure:.2g})",
            "far: an earlier stage is better" if far else "near: no stage is surely better",
        ),
        ("the last doubling of the pictures", doubling, "steep" if steep else "flat"),
        ("LogME is highest at", max(features.stages, key=lambda name: log_me(features.stages[name], features.labels)),
         "a second opinion on the stage"),
    ]  # fmt: skip
    stage = table.best if far else last
    options = _options(backbone, stage, int(counts.sum()), rate)
    # From the probe's weights, not from a random head: see `benchmarks/strategies.py`.
    wanted = ("probe+fine-tune", STAGES) if much else ("probe", 0)
    chosen = min(
        (option for option in options if option.strategy == wanted[0]),
        key=lambda option: abs(option.stages - wanted[1]),
    )
    rates = {"head": 3e-4, "backbone": 3e-4} if much else {}
    return Advice(
        cell=f"{'much' if much else 'little'} data, {'far' if far else 'near'}",
        chosen=chosen,
        learning_rates=rates,
        more_data=steep and not much,
        options=tuple(options),
        reasons=tuple(reasons),
        seconds=time.perf_counter() - started,
    )


def rank_backbones(data: Data, names: Sequence[str], *, weights: str = "auto") -> list[dict]:
    """Get networks ranked by how well their last features suit the labels, without training any.

    Args:
        data: From a loader; its training pictures are looked at.
        names: Of backbones, two or more.
        weights: As in `load_backbone`.

    Returns:
        A dictionary a network: name, alpha, log_me (they are sorted by it, best first), h_score, top1 (published
        ImageNet accuracy in per cent; None for another width or other weights) and seconds.

    Raises:
        ValueError: If there are fewer than two different networks, or weights in reach for fewer, or the labels are
            not one class a picture.
    """
    if isinstance(names, str) or len(set(names)) < 2:
        raise ValueError(f"A ranking needs a list of two networks or more, got {names!r}.")
    check_classes(data)
    rows = []
    for name in dict.fromkeys(names):
        started = time.perf_counter()
        backbone = load_backbone(name, weights=weights, image_size=data.image_size)
        own = backbone.name == name or name.startswith(HUB_PREFIX)
        if not own or (weights == "auto" and backbone.weights == "embedded"):
            log.warning("%s: its weights are out of reach and it is left out", name)
            continue
        features = extract_features(backbone, data.pictures("train"))
        published = backbone.weights == "imagenet" and backbone.alpha in (None, 1.0)
        top1 = CATALOGUE[name].top1 if published and name in CATALOGUE else None
        rows.append({
            "name": name, "alpha": backbone.alpha, "log_me": log_me(features.last, features.labels),
            "h_score": h_score(features.last, features.labels), "top1": top1,
            "seconds": time.perf_counter() - started,
        })  # fmt: skip
    if len(rows) < 2:
        raise ValueError(
            f"Weights of {len(rows)} of these networks are in reach, and a ranking takes two: {list(names)}."
        )
    return sorted(rows, key=lambda row: -row["log_me"])


def check_classes(data: Data) -> None:
    """Refuse what is no `Data` of a loader, and labels that are not one class a picture."""
    check_data(data)
    labels = data.labels["train"]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"This takes one class a picture; these labels are {labels.dtype}, {labels.shape}. For values, or "
            "several labels a picture: build_classifier(..., task=...) and train_head."
        )


def _measure(data: Data, backbone: Backbone, seconds: float, seed: int) -> tuple[Features, np.ndarray, float]:
    """Features of all stages for as many training pictures as time allows, what belongs together, seconds a picture."""
    order = np.random.default_rng(seed).permutation(len(data.labels["train"]))
    trial = data.subset(order[: 2 * data.batch_size])
    extract_features(backbone, trial.pictures("train"), stages="all")  # compiles the engine, too
    started = time.perf_counter()
    extract_features(backbone, trial.pictures("train"), stages="all")
    rate = (time.perf_counter() - started) / len(trial.labels["train"])
    labels = data.labels["train"][order]
    some = [order[labels == label][:FEWEST] for label in range(data.num_classes)]
    number = max(int(min(seconds / rate, len(order))), 16 * data.num_classes)
    sample = data.subset(np.unique(np.concatenate([order[:number], *some])))
    return extract_features(backbone, sample.pictures("train"), stages="all"), sample.pieces["train"], rate


def _slope(features: Features, pieces: np.ndarray, stage: str, seed: int) -> float | None:
    """What doubling the pictures brought a probe: accuracy with all less that with half of them; None if too few."""
    from sklearn.model_selection import train_test_split

    values, labels, gains = features.stages[stage], features.labels, []
    for train, test in cut(labels, pieces, 5, seed):
        if np.bincount(labels[train]).min() < 4:
            return None
        half, _ = train_test_split(train, train_size=0.5, stratify=labels[train], random_state=seed)
        scores = [
            fit_probe(values[rows], labels[rows], seed=seed).score(values[test], labels[test]) for rows in (train, half)
        ]
        gains.append(scores[0] - scores[1])
    return float(np.mean(gains))


def _options(backbone: Backbone, stage: str, num_pictures: int, rate: float) -> list[Option]:
    """The ways there are, and roughly what each costs: a backward pass counts as two forward ones of what it covers."""
    last, once = backbone.stages[-1], num_pictures * rate
    options = [Option("probe", stage, 0, once + 2), Option("head", last, 0, VIEWS * once + 5)]
    layers = [layer.name for layer in backbone.model.layers]
    for stages in (2, 4, len(backbone.stages)):
        if stages > len(backbone.stages):
            continue
        cut = layers.index(backbone.stages[-1 - stages]) if stages < len(backbone.stages) else 0
        above = 1 - cut / len(layers)
        training = 3 * VIEWS * EPOCHS * above * once * (2 if keras.backend.backend() == "tensorflow" else 4)
        options.append(Option("probe+fine-tune", last, stages, (1 + VIEWS) * once + training + 10))
    return options
