"""How a phase of training goes, apart from its epochs and learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tlkeras.arguments import real_number, whole_number


@dataclass(frozen=True)
class Settings:
    """How a phase is trained, apart from its epochs and learning rate; where it matters, `transfer` has other defaults.

    Attributes:
        patience: Epochs without a lower validation loss before a phase stops; None never stops early.
        class_weight: Weight of each class in the loss, of training and validation, such as `data.class_weight`; a
            class that is not named has 1. None weighs all alike.
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        warmup: Share of the steps over which the learning rate rises from 0, in [0, 1]; a cosine to 0 follows.
        head_factor: The head's learning rate in `fine_tune`, as a multiple of the backbone's top stage. None is 10, and
            1 in `transfer`, whose head is trained to its end by then.
        stage_decay: Factor in (0, 1] on the learning rate for each stage further down; 1.0 treats all alike.
        interpolate: How far `fine_tune` goes from the weights before it to the trained ones, in (0, 1]. 0.5 is half
            way (WiSE-FT, Wortsman et al. 2022, https://arxiv.org/abs/2109.01903): steadier where pictures differ from
            those trained on. "best" is none, a quarter, half, three quarters or all of the way to the last weights: of
            those that are right on no fewer validation pictures than none of the way (by the weights of their classes,
            if these have some), the one with the lowest validation loss; without validation data 0.5. None is 1.0, and
            "best" in `transfer`.
        views: Passes over the training data whose features at the cut between frozen and trained layers are stored, so
            that only what is above the cut is computed again; the first pass is without the model's augmentation. An
            epoch then goes over all views. 0 trains on pictures. None is 4 in `train_head` if the model augments, else
            1; 0 in `fine_tune`, where each epoch's augmentation is new; in `transfer` 4 or 1 in both. Features over
            2 GB are not stored.
        run_folder: Where each epoch is saved, so that the same call goes on after a kill; None saves nothing. Another
            call or another number of batches is refused; other pictures of the same number are not noticed.
        verbose: 0 is silent, 1 shows a progress bar, 2 prints a line an epoch.
    """

    patience: int | None = 5
    class_weight: dict[int, float] | None = None
    label_smoothing: float = 0.0
    warmup: float = 0.1
    head_factor: float | None = None
    stage_decay: float = 1.0
    interpolate: float | str | None = None
    views: int | None = None
    run_folder: str | Path | None = None
    verbose: int = 1

    def __post_init__(self):
        """Refuse values outside their range."""
        intervals = {"label_smoothing": "[0, 1)", "warmup": "[0, 1]", "stage_decay": "(0, 1]"}
        if self.head_factor is not None:
            intervals["head_factor"] = "(0, inf)"
        if isinstance(self.interpolate, str) and self.interpolate != "best":
            raise ValueError(f"interpolate must be 'best' or a number in (0, 1], got {self.interpolate!r}.")
        if self.interpolate not in (None, "best"):
            intervals["interpolate"] = "(0, 1]"
        for name, interval in intervals.items():
            real_number(name, getattr(self, name), interval)
        for name, least in [("patience", 1), ("views", 0)]:
            if getattr(self, name) is not None:
                whole_number(name, getattr(self, name), least)
