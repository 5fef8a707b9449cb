"""The whole recipe in one call."""

from __future__ import annotations

import dataclasses
import logging
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np

from tlkeras.advisor import EPOCHS, STAGES, VIEWS, Advice, advise, check_classes
from tlkeras.augmentation import change_batch
from tlkeras.backbones import Backbone, load_backbone
from tlkeras.batches import count_batches
from tlkeras.features import count_views
from tlkeras.freezing import freeze, unfreeze_stages, unfreeze_top
from tlkeras.heads import build_classifier
from tlkeras.history import History
from tlkeras.probes import probe_head
from tlkeras.settings import Settings
from tlkeras.training import fine_tune, train_head

if TYPE_CHECKING:
    from tlkeras.data import Data

log = logging.getLogger("tlkeras")

STRATEGIES = ("probe", "head", "fine-tune", "probe+fine-tune", "auto")


@dataclass(frozen=True)
class Result:
    """What `transfer` gives.

    Attributes:
        model: The trained classifier.
        history: Both phases.
        strategy: Which one was used: "fine-tune" for "probe+fine-tune" where a class has too few pictures for a probe.
        advice: What chose it, for "auto" and an `Advice`; else None.
    """

    model: keras.Model
    history: History
    strategy: str
    advice: Advice | None = None


def transfer(
    data: Data,
    backbone: str | Backbone = "MobileNetV2",
    *,
    strategy: str | Advice = "probe+fine-tune",
    stages: int | float | str | Sequence[str] | None = None,
    augment: str | keras.Layer | None = "light",
    seed: int = 0,
    settings: Settings | None = None,
) -> Result:
    """Get a trained classifier for these pictures by transfer learning.

    Args:
        data: From `load_folder`, `load_arrays` or `load_tfds`.
        backbone: A name for `load_backbone`, or what it returned.
        strategy: "probe" (features once, softmax regression: seconds), "head" (the head alone, on augmented views),
            "fine-tune" (the head, then the top of the backbone at a low learning rate, undone where it does not help),
            "probe+fine-tune" (the same from the probe's weights: LP-FT, Kumar et al. 2022,
            https://arxiv.org/abs/2202.10054; in our benchmarks four points ahead of it, and of the probe by less than
            runs differ) or "auto" (what `advise` says); or an `Advice`, to follow it. Fine-tuning goes at a peak of
            3e-4 for head and stages alike, 3 epochs over 4 stored views (12 over one; 8 over pictures where views do
            not fit).
        stages: What fine-tuning unfreezes, as in `unfreeze_top`; or names of stages, as in `unfreeze_stages`. None is
            the last four, as far as there are so many. An advice brings its own.
        augment: What changes the training pictures where the data were not given a way, as in `load_folder`. "light"
            mirrors and crops them a little: take None for text, or where left and right matter. A probe sees them as
            they are.
        seed: Of the head's first weights, the order of pictures and the augmentation; set with Keras's
            `set_random_seed`, so Python's and numpy's random numbers start anew as well.
        settings: As in `train_head` and `fine_tune`; `data.class_weight` is used where it names none. Its run folder
            gets a folder for each strategy and seed.

    Returns:
        A `Result`.

    Raises:
        ValueError: If the strategy or a stage is unknown, `augment` is not as said, or the labels are not one class a
            picture.
    """
    advice = strategy if isinstance(strategy, Advice) else None
    if advice is None and strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(map(repr, STRATEGIES))}, got {strategy!r}.")
    check_classes(data)
    change_batch(augment)
    keras.utils.set_random_seed(seed)
    if isinstance(backbone, str):
        backbone = load_backbone(backbone, weights="auto", image_size=data.image_size)
    settings = settings or Settings()
    if settings.class_weight is None and data.class_weight:
        settings = dataclasses.replace(settings, class_weight=data.class_weight)
    if strategy == "auto":
        advice = advise(data, backbone, seed=seed)
    if advice:
        log.info("%s", advice)
        strategy, stages = advice.chosen.strategy, advice.chosen.stages
    counts = np.bincount(data.labels["train"], minlength=data.num_classes)
    if strategy == "probe+fine-tune" and counts.min() < 2:
        rare = data.class_names[int(counts.argmin())]
        log.warning("a probe takes two pictures of each class, %r has %d: the head begins anew", rare, counts.min())
        strategy = "fine-tune"
    model = build_classifier(backbone, data.num_classes, stage=advice and advice.chosen.stage)
    stages = min(STAGES, len(backbone.stages)) if stages is None else stages
    unfreeze = unfreeze_top if isinstance(stages, numbers.Real | str) else unfreeze_stages
    if strategy.endswith("fine-tune"):  # what cannot be opened is said before the head is trained
        if not unfreeze(model, stages):
            raise ValueError(f"stages={stages!r} leaves nothing to fine-tune: take 1 or more, or strategy='head'.")
        freeze(model)
    if strategy.startswith("probe"):
        history = probe_head(model, data, class_weight=settings.class_weight, seed=seed)
        if strategy == "probe":
            return Result(model, history, strategy, advice)
    data = data.augmented(augment if data.augment is None else data.augment)  # a fresh order, whatever ran before
    views = settings.views if settings.views is not None else 1 if data.augment is None else VIEWS
    folder = settings.run_folder and Path(settings.run_folder) / f"{strategy} {seed}"
    settings, train = dataclasses.replace(settings, views=views, run_folder=folder), data.train
    if strategy in ("head", "fine-tune"):
        history = train_head(model, train, data.validation, settings=settings)
    if strategy.endswith("fine-tune"):
        unfreeze(model, stages)
        # An epoch over four stored views is four epochs over the pictures, where there is room for them.
        splits = {"train": train, "validation": data.validation}
        sizes = [count_batches(split) * min(data.batch_size, len(data.labels[name])) for name, split in splits.items()]
        epochs = max(1, VIEWS * EPOCHS // views) if count_views(model, *sizes, views=views) else 8
        tuned = {"head_factor": settings.head_factor or 1.0, "interpolate": settings.interpolate or "best"}
        settings = dataclasses.replace(settings, **tuned)
        history += fine_tune(model, train, data.validation, epochs=epochs, learning_rate=3e-4, settings=settings)
    return Result(model, history, strategy, advice)
