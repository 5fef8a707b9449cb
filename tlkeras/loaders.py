"""Loaders: `Data` from a folder of pictures or from arrays; looked at first, split once."""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tlkeras.data import Data, assemble, check_options
from tlkeras.duplicates import encode, join, sets
from tlkeras.pictures import decode_picture
from tlkeras.scan import SetAside, scan_folder
from tlkeras.splits import SPLITS, Manifest, Split, group_keys, report_leaks, split_files
from tlkeras.stratification import deal

logger = logging.getLogger("tlkeras")
MOST_CLASSES = 10  # as many whole numbers among labels that are floats look like classes


def load_folder(
    path: str | os.PathLike,
    *,
    image_size: int = 224,
    batch_size: int = 32,
    seed: int = 0,
    split: Split | Manifest | None = None,
    augment: str | keras.Layer | None = None,
) -> Data:
    """Get training, validation and test pictures from a folder of class folders.

    Use it for pictures on disk. Every file is looked at first: one that cannot be used is set aside by name and never
    stops `fit` later. The list of files is split once, so no picture is on two sides, as happens when `take` and
    `skip` are used on a dataset that reshuffles.

    Args:
        path: a folder of class folders, or of train/ with val/ (valid/, validation/) and perhaps test/ of such.
            A split that the folders give is kept; what they do not give is cut from train/.
        image_size: side in pixels of the square that pictures are stretched to.
        batch_size: pictures a batch.
        seed: decides the split, the order of training pictures and the augmentation.
        split: `Split(…)`, or what `read_manifest` returned to use that split again; None is `Split()`.
        augment: for training pictures: None; "light" (mirrored left to right half of the time, and a window of 80 to
            100 % of each side at a random place); or a Keras layer, called on float32 batches in [0, 255]. A mirrored
            picture must keep its class: it does not for text, or where left and right matter.

    Returns:
        A Data.

    Raises:
        ValueError: when the folder does not have that layout, when fewer than two classes hold usable pictures, when
            a class is too small for the split, or when the pictures are not those of the manifest.
    """
    check_options(batch_size, augment)
    split = Split() if split is None else split
    if not isinstance(split, Split | Manifest):
        raise ValueError(f"split is a Split(…) or what read_manifest(…) returned, not {split!r}.")
    scan = scan_folder(path, image_size=image_size, looks=isinstance(split, Manifest) or split.near_duplicates)
    if odd := [name for name in scan.class_names if name != name.encode("utf-8", "ignore").decode()]:
        raise ValueError(
            f"The class folder {odd[0]!r} has a name that is no UTF-8, which no figure can show: rename it."
        )
    sides, duplicates, pieces = split_files(scan.pictures, split, seed=seed)
    if missing := [name for name in ("train", "validation") if name not in sides]:
        raise ValueError(f"No picture is in {' and '.join(missing)}: the manifest or the folders leave it empty.")
    paths, notes = [picture.path for picture in scan.pictures], list(scan.notes)
    unlisted = [SetAside(path, "not in the manifest") for path, side in zip(paths, sides, strict=True) if not side]
    dealt = {picture.class_name for picture, side in zip(scan.pictures, sides, strict=True) if side}
    class_names = tuple(name for name in scan.class_names if name in dealt)  # all but those that no manifest lists
    position = {name: label for label, name in enumerate(class_names)}
    labels = np.array([position.get(picture.class_name, -1) for picture in scan.pictures])
    for side in SPLITS:
        here = {picture.class_name for picture, other in zip(scan.pictures, sides, strict=True) if other == side}
        if here and (absent := [name for name in class_names if name not in here]):
            notes.append(f"{side} holds no picture of {', '.join(absent)}")

    def decode(numbers: np.ndarray) -> np.ndarray:
        return np.stack([decode_picture(scan.root / paths[number], image_size) for number in numbers])

    return assemble(
        sides,
        labels,
        pieces=pieces,
        paths=paths,
        hashes=[picture.sha256 for picture in scan.pictures],
        class_names=class_names,
        image_size=image_size,
        batch_size=batch_size,
        pixels=decode if scan.pixels is None else scan.pixels,
        seed=seed,
        augment=augment,
        set_aside=(*scan.set_aside, *unlisted),
        duplicates=duplicates,
        notes=tuple(notes),
        cache=scan.cache,
        root=scan.root,
    )


def load_arrays(
    images: np.ndarray,
    labels: np.ndarray | Sequence,
    *,
    class_names: Sequence[str] | None = None,
    batch_size: int = 32,
    seed: int = 0,
    split: Split | None = None,
) -> Data:
    """Get training, validation and test pictures from arrays that are in memory already.

    Use it for pictures that another library gave. Pictures with equal pixels stay on one side.

    Args:
        images: (n, height, width, 3) or (n, height, width, 1), square, in [0, 255], whole numbers or floats.
        labels: (n,) names or whole numbers for classification, as (n, 1) too; (n,) floats for regression; (n, k) zeros
            and ones for multi-label classification, or floats for k numbers. Only classes are stratified.
        class_names: what label 0, 1, … is called, no two alike; by default the labels themselves, sorted.
        batch_size: pictures a batch.
        seed: decides the split and the order of training pictures.
        split: shares and groups (one key a picture).

    Returns:
        A Data without paths; see `Data.augmented` for augmentation.

    Raises:
        ValueError: when shapes, ranges, labels or names are not as above.

    >>> import numpy as np
    >>> images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    >>> data = load_arrays(images, ["cat", "dog"] * 10)
    >>> data.counts["validation"]
    {'cat': 2, 'dog': 2}
    """
    images = _check_images(_as_array(images, "images"))
    labels, names = _check_labels(_as_array(labels, "labels"), class_names, len(images))
    texts = sorted(map(str, names))
    if twice := [name for name, other in zip(texts, texts[1:], strict=False) if name == other]:
        raise ValueError(f"Two classes are called {twice[0]!r}: give each a name of its own, or join their labels.")
    digests = [hashlib.sha256(np.ascontiguousarray(image)).hexdigest() for image in images]
    return split_pixels(images, labels, digests, split=split, class_names=names, batch_size=batch_size, seed=seed)


def split_pixels(
    pixels: np.ndarray,
    labels: np.ndarray,
    digests: Sequence[str],
    *,
    split: Split | None,
    class_names: tuple[str, ...],
    seed: int,
    given: Sequence[str | None] | None = None,
    **rest: Any,
) -> Data:
    """Split pictures without files: equal bytes stay together, and the position takes the place of the path."""
    split = Split() if split is None else split
    if not isinstance(split, Split):
        raise ValueError(f"split is a Split(…) here, not {split!r}: a manifest needs files.")
    if callable(split.groups) or isinstance(split.groups, str):
        raise ValueError("There are no paths here: pass groups as one key a picture.")
    names, same = [str(number) for number in range(len(pixels))], encode(digests)
    groups = group_keys(names, split.groups)
    pieces = same if groups is None else join(same, groups)
    if given is not None:
        report_leaks([f"picture {name}" for name in names], given, same, "are the same")
    classes = [class_names[label] for label in labels] if labels.dtype.kind == "i" else None
    return assemble(
        deal(classes, pieces, names, split=split, seed=seed, given=given),
        labels,
        pieces=pieces,
        class_names=class_names,
        image_size=pixels.shape[1],
        pixels=pixels,
        seed=seed,
        duplicates=sets(names, same),
        **rest,
    )


def _as_array(values: Any, what: str) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{what} must all have one shape, to make one array: {error}") from error


def _is_label(label: Any) -> bool:
    return isinstance(label, str | int | np.integer)


def _check_images(images: np.ndarray) -> np.ndarray:
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or images.shape[1] != images.shape[2] or not len(images):
        raise ValueError(
            f"Expected square images of shape (n, height, width, 3) or (n, height, width, 1), got {images.shape}; "
            "see keras.ops.image.resize."
        )
    if images.dtype.kind not in "uif":
        raise ValueError(f"Expected images of whole numbers or floats in [0, 255], got dtype {images.dtype}.")
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 255):  # written so that NaN fails too
        raise ValueError(f"Expected values in [0, 255], got {low:g} to {high:g}; undo any normalization first.")
    if images.dtype.kind == "f" and high <= 1:
        raise ValueError(f"Expected values in [0, 255]; these floats run from {low:g} to {high:g}: multiply by 255.")
    images = images.astype(np.float32 if images.dtype.kind == "f" else np.uint8, copy=False)
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def _check_labels(
    labels: np.ndarray, class_names: Sequence[str] | None, num_images: int
) -> tuple[np.ndarray, tuple[str, ...]]:
    if labels.ndim not in (1, 2) or len(labels) != num_images:
        raise ValueError(f"Expected one label a picture, {num_images} in all; got labels of shape {labels.shape}.")
    class_names = None if class_names is None else tuple(map(str, class_names))
    if labels.dtype.kind == "O":
        if odd := [k for k, label in enumerate(labels.ravel()) if not _is_label(label)]:
            raise ValueError(f"Label {odd[0]} is {labels.ravel()[odd[0]]!r}: leave pictures without a label out.")
        kinds = {isinstance(label, str | bytes): label for label in labels.ravel()}
        if len(kinds) > 1:
            raise ValueError(f"Labels are texts or numbers, and here are both: {kinds[True]!r} and {kinds[False]!r}.")
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels)
    if labels.ndim == 2 and labels.shape[1] == 1 and labels.dtype.kind != "f" and len(class_names or "two") != 1:
        labels = labels[:, 0]  # as in keras.datasets.cifar10
    floats = labels.dtype.kind == "f"
    if labels.ndim == 2 or floats:
        labels = labels.astype(np.float32)
        if not np.isfinite(labels).all():
            raise ValueError("Labels must be finite numbers; drop the pictures without a label first.")
        width = labels.shape[1] if labels.ndim == 2 else 1
        names = tuple(class_names or (["value"] if labels.ndim == 1 else [str(column) for column in range(width)]))
        if len(names) != width:
            raise ValueError(
                f"Expected {width} class names for labels of shape {labels.shape}, got {len(names)}. Classes are whole "
                "numbers of shape (n,): labels.astype(int).ravel()."
            )
        if floats and width == 1 and len(np.unique(labels)) <= MOST_CLASSES and (labels == np.rint(labels)).all():
            logger.warning("the labels are floats, so this is regression: for classes pass labels.astype(int)")
        if labels.ndim == 2 and width > 1 and ((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all():
            logger.warning("every row of the labels holds a single 1: for exclusive classes pass labels.argmax(axis=1)")
        return labels, names
    values = np.unique(labels)
    if class_names is None:
        names = tuple(str(value) for value in values)
        codes = np.searchsorted(values, labels)
    elif labels.dtype.kind in "iub":
        names = tuple(class_names)
        if values[0] < 0 or values[-1] >= len(names):
            raise ValueError(f"Labels run from {values[0]} to {values[-1]}, but there are {len(names)} class names.")
        codes = labels
    else:
        names = tuple(class_names)
        position = {name: label for label, name in enumerate(names)}
        if unknown := [str(value) for value in values if str(value) not in position]:
            near = difflib.get_close_matches(unknown[0], names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"The label {unknown[0]!r} is not among the class names {list(names)}{hint}")
        codes = np.array([position[str(label)] for label in labels])
    if len(values) < 2:
        raise ValueError(f"Two or more classes are needed, and every label is {values[0]!r}.")
    return codes.astype(np.int64), names
