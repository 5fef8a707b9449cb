"""`Data`: three disjoint splits as tf.data pipelines, with names, counts and what was set aside."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tlkeras.arguments import whole_number
from tlkeras.augmentation import change_batch
from tlkeras.pipelines import PictureBatches, Pixels, make_pipeline
from tlkeras.scan import SetAside
from tlkeras.splits import SPLITS

logger = logging.getLogger("tlkeras")

IMBALANCE = 1.5  # largest class to smallest; beyond it the loss of the small class is weighted up


@dataclass(repr=False)
class Data:
    """Train, validation and test pictures that share nothing, and all that is known about them.

    Made by `load_folder`, `load_arrays` and `load_tfds`.

    Attributes:
        train, validation, test: tf.data.Dataset of (float32 images (batch, height, width, 3) in [0, 255], labels
            (batch,)). `train` is shuffled anew each epoch and augmented if asked for; `test` may be None.
        class_names: the name of label 0, 1, …
        image_size, batch_size: side in pixels; pictures a batch.
        counts: {"train": {"ants": 123, …}, …}, for the splits that exist.
        paths: per split, relative to `root` with forward slashes, in the order of `ordered(split)`; None for arrays.
        labels: per split, in the same order.
        hashes: per split, the SHA-256 of each file, in the same order; None for arrays.
        pieces: per split, an integer a picture; pictures of one group or one look share it, and any further cut should
            keep them together.
        set_aside: files that were found and not used, each with its reason.
        duplicates: sets of paths that show the same picture (arrays: sets of positions, as text).
        class_weight: for `fit`, where the largest class has over 1.5 times the pictures of the smallest; else None.
        notes: what else happened while loading, a sentence each.
        cache: where decoded pictures are kept: "memory", "disk" or "none" (decoded again each epoch).
        root: the folder that `paths` are relative to, or None.
        index: per split, the numbers of its pictures, in the same order.
        pixels: decoded pictures (picture, height, width, 3) in [0, 255], or a function from numbers to such an array;
            kept as `Pixels`.
        seed, augment: as they were given.
    """

    class_names: tuple[str, ...]
    image_size: int
    batch_size: int
    paths: dict[str, list[str] | None]
    labels: dict[str, np.ndarray]
    hashes: dict[str, list[str] | None]
    pieces: dict[str, np.ndarray]
    pixels: Any
    index: dict[str, np.ndarray]
    seed: int = 0
    augment: str | keras.Layer | None = None
    set_aside: tuple[SetAside, ...] = ()
    duplicates: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()
    cache: str = "memory"
    root: Path | None = None
    counts: dict[str, dict[str, int]] = field(init=False)
    class_weight: dict[int, float] | None = field(init=False)

    def __post_init__(self):
        """Count; the pipelines are built when they are first asked for."""
        check_options(self.batch_size, self.augment)
        if not isinstance(self.pixels, Pixels):
            self.pixels = Pixels(self.pixels)
        self.counts = {split: _count(labels, self.class_names) for split, labels in self.labels.items()}
        self.class_weight = _balance(self.labels["train"], self.class_names)

    @functools.cached_property
    def train(self) -> Any:
        """Training pictures: shuffled anew each epoch, and augmented if asked for."""
        return self._pipeline("train", shuffle=self.seed, augment=self.augment)

    @functools.cached_property
    def validation(self) -> Any:
        """Validation pictures, in order."""
        return self.ordered("validation")

    @functools.cached_property
    def test(self) -> Any:
        """Test pictures, in order, or None."""
        return self.ordered("test") if "test" in self.index else None

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    def ordered(self, split: str) -> Any:
        """Get the pictures of a split in the order of `paths` and `labels`: never shuffled, never augmented.

        Use it wherever a prediction must be matched with its file: `train` comes in another order each time.

        Args:
            split: "train", "validation" or "test".

        Returns:
            tf.data.Dataset of (float32 images (batch, height, width, 3) in [0, 255], labels (batch,)).

        Raises:
            ValueError: when there is no such split.
        """
        self._check(split)
        return self._pipeline(split)

    def pictures(self, split: str) -> PictureBatches:
        """Get what `ordered` gives as numpy batches: images as they are stored, uint8 of files; no TensorFlow.

        Use it for one pass, such as `extract_features`: nothing is compiled, and no picture is held twice.

        Args:
            split: "train", "validation" or "test".

        Raises:
            ValueError: when there is no such split.
        """
        self._check(split)
        return PictureBatches(self.pixels, self.index[split], self.labels[split], self.batch_size)

    def _check(self, split: str) -> None:
        if split not in self.index:
            raise ValueError(f"There is no split {split!r} in this data; it has {', '.join(self.index)}.")

    def _pipeline(self, split: str, **options: Any) -> Any:
        return make_pipeline(
            self.pixels,
            self.index[split],
            self.labels[split],
            image_size=self.image_size,
            batch_size=self.batch_size,
            **options,
        )

    def augmented(self, augment: str | keras.Layer | None) -> Data:
        """Get the same data with training pictures augmented in another way; nothing is read or split again.

        Args:
            augment: None, "light" or a Keras layer, as in `load_folder`.

        Raises:
            ValueError: when `augment` is none of these.
        """
        return dataclasses.replace(self, augment=augment)

    def subset(self, rows: np.ndarray) -> Data:
        """Get the same data with only some of the training pictures, such as for a learning curve.

        Args:
            rows: places in `labels["train"]`, in any order; they are sorted. Or a mask, True for each that is wanted.

        Raises:
            ValueError: when they are neither places in it nor a mask of its length.
        """
        rows, count = np.asarray(rows), len(self.labels["train"])
        if rows.dtype == bool and rows.shape == (count,):
            rows = np.flatnonzero(rows)
        if rows.ndim != 1 or rows.dtype.kind not in "iu" or not len(rows) or rows.min() < 0 or rows.max() >= count:
            raise ValueError(f"rows are places from 0 to {count - 1}, or a mask of {count}; got {rows!r}.")
        rows = np.sort(rows)

        def fewer(column: Any) -> Any:
            train = column["train"]
            if isinstance(train, list):
                train = [train[row] for row in rows]
            return {**column, "train": None if train is None else train if isinstance(train, list) else train[rows]}

        columns = ("index", "labels", "pieces", "paths", "hashes")
        return dataclasses.replace(self, **{name: fewer(getattr(self, name)) for name in columns})

    def __repr__(self) -> str:
        """Show a table that a person can read."""
        width = max(len(name) for name in (*self.class_names, "pictures"))
        total = sum(len(labels) for labels in self.labels.values())
        lines = [f"Data: {total:,} pictures, {self.num_classes} classes, {self.image_size} px, cache: {self.cache}"]
        lines.append(" " * width + "".join(f"{split:>12}" for split in self.counts))
        shown = self.class_names if self.num_classes <= 20 else self.class_names[:18]
        for name in shown:
            lines.append(f"{name:{width}}" + "".join(f"{count.get(name, 0):12,}" for count in self.counts.values()))
        if len(shown) < self.num_classes:
            lines.append(f"… and {self.num_classes - len(shown)} classes more")
        lines.append(f"{'pictures':{width}}" + "".join(f"{len(labels):12,}" for labels in self.labels.values()))
        if self.class_weight:
            lines.append(f"class weights: {_weights(self)}")
        if self.duplicates:
            lines.append(f"duplicates: {len(self.duplicates)} sets of pictures that look the same")
        lines += [f"set aside: {item.path}: {item.reason}" for item in self.set_aside[:10]]
        if len(self.set_aside) > 10:
            lines.append(f"set aside: … and {len(self.set_aside) - 10} more, see data.set_aside")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def check_options(batch_size: int, augment: str | keras.Layer | None = None) -> None:
    """Refuse what no pipeline can have; to be called before the first picture is looked at.

    Raises:
        ValueError: when `batch_size` is no whole number from 1, or `augment` none of what `load_folder` takes.
    """
    whole_number("batch_size", batch_size, 1)
    change_batch(augment)


def assemble(
    sides: Sequence[str],
    labels: np.ndarray,
    *,
    pieces: np.ndarray,
    paths: Sequence[str] | None = None,
    hashes: Sequence[str] | None = None,
    **rest: Any,
) -> Data:
    """Get the `Data` of pictures that were dealt to sides, and say aloud what a user should know of it.

    Args:
        sides: "train", "validation" or "test" for each picture; anything else leaves it out.
        labels: one a picture.
        pieces: an integer a picture, the same for those that belong together.
        paths: one a picture, or None where there are no files.
        hashes: likewise.
        rest: the other arguments of `Data`.
    """
    index = {side: np.flatnonzero(np.array(sides) == side) for side in SPLITS}
    index = {side: numbers for side, numbers in index.items() if len(numbers)}

    def deal_out(column: Sequence[str] | None) -> dict[str, list[str] | None]:
        return {side: column and [column[number] for number in numbers] for side, numbers in index.items()}

    labels = {side: labels[numbers] for side, numbers in index.items()}
    pieces = {side: np.asarray(pieces)[numbers] for side, numbers in index.items()}
    data = Data(index=index, labels=labels, pieces=pieces, paths=deal_out(paths), hashes=deal_out(hashes), **rest)
    _say(data)
    return data


def _count(labels: np.ndarray, class_names: tuple[str, ...]) -> dict[str, int]:
    if labels.dtype.kind == "i":
        counts = np.bincount(labels, minlength=len(class_names))
    elif labels.ndim == 2:
        counts = (labels > 0.5).sum(axis=0)
    else:
        counts = [len(labels)]
    return {name: int(count) for name, count in zip(class_names, counts, strict=True)}


def _balance(labels: np.ndarray, class_names: tuple[str, ...]) -> dict[int, float] | None:
    if labels.dtype.kind != "i":
        return None
    counts = np.bincount(labels, minlength=len(class_names))
    present = counts[counts > 0]
    if present.max() <= IMBALANCE * present.min():
        return None
    # As scikit-learn's "balanced": every class weighs the same in all, and the mean weight of a picture is 1.
    return {label: float(len(labels) / (len(present) * count)) if count else 1.0 for label, count in enumerate(counts)}


def _say(data: Data) -> None:
    if data.set_aside:
        shown = "; ".join(f"{item.path} ({item.reason})" for item in data.set_aside[:5])
        more = f"; and {len(data.set_aside) - 5} more, see data.set_aside or a run's report.html"
        more = more if len(data.set_aside) > 5 else ""
        logger.warning("%d files or folders set aside: %s%s", len(data.set_aside), shown, more)
    for note in data.notes:
        logger.warning("%s", note)
    if data.duplicates:
        logger.warning("%d sets of pictures look the same, such as %s", len(data.duplicates), data.duplicates[0])
    if data.class_weight:
        _warn_once(f"classes are out of balance; class_weight for fit: {_weights(data)}")


@functools.cache
def _warn_once(text: str) -> None:
    """A loop over seeds divides the same pictures; once is enough."""
    logger.warning("%s", text)


def _weights(data: Data) -> str:
    return ", ".join(f"{data.class_names[label]} {weight:.2f}" for label, weight in data.class_weight.items())
