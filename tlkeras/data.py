"""Pictures in, `Data` out: three disjoint splits as tf.data pipelines, with names, counts and what was set aside.

The order of the pipeline is the lesson: decode once, cache, shuffle, batch, augment, prefetch. A cache after the
augmentation would freeze it, and a split made on a shuffled dataset would leak.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tlkeras.scan import SPLIT_FOLDERS, SetAside, decode_picture, reserve, scan_folder
from tlkeras.splits import SPLITS, Manifest, Split, deal, group_keys, join, read_manifest, split_files, write_manifest

__all__ = ["Data", "Manifest", "SetAside", "Split", "light_augmentation", "load_arrays", "load_folder", "load_tfds"]
__all__ += ["read_manifest", "write_manifest"]

logger = logging.getLogger("tlkeras")

IMBALANCE = 1.5  # largest class to smallest; beyond it the loss of the small class is weighted up
WINDOW = 0.8  # "light" augmentation: the smallest side of the window, as a share of the picture's


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
        set_aside: files that were found and not used, each with its reason.
        duplicates: sets of paths that show the same picture (arrays: sets of positions, as text).
        class_weight: for `fit`, where the largest class has over 1.5 times the pictures of the smallest; else None.
        notes: what else happened while loading, a sentence each.
        cache: where decoded pictures are kept: "memory", "disk" or "none" (decoded again each epoch).
        root: the folder that `paths` are relative to, or None.
        index: per split, the numbers of its pictures, in the same order.
        pixels: where decoded pictures come from: a tf.Tensor (picture, height, width, 3) in [0, 255], or a function
            from such numbers to such an array.
        seed, augment: as they were given.
    """

    class_names: tuple[str, ...]
    image_size: int
    batch_size: int
    paths: dict[str, list[str] | None]
    labels: dict[str, np.ndarray]
    hashes: dict[str, list[str] | None]
    pixels: Any  # tf.Tensor (picture, height, width, 3), or a function from numbers of pictures to such an array
    index: dict[str, np.ndarray]  # the numbers of each split
    seed: int = 0
    augment: str | keras.Layer | None = None
    set_aside: tuple[SetAside, ...] = ()
    duplicates: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()
    cache: str = "memory"
    root: Path | None = None
    counts: dict[str, dict[str, int]] = field(init=False)
    class_weight: dict[int, float] | None = field(init=False)
    train: Any = field(init=False)
    validation: Any = field(init=False)
    test: Any = field(init=False)

    def __post_init__(self):
        """Build the pipelines; `dataclasses.replace` builds them anew."""
        _check_whole("batch_size", self.batch_size)
        self.counts = {split: _count(labels, self.class_names) for split, labels in self.labels.items()}
        self.class_weight = _balance(self.labels["train"], self.class_names)
        self.train = _pipeline(self, "train", shuffle=True, augment=self.augment)
        self.validation = self.ordered("validation")
        self.test = self.ordered("test") if "test" in self.index else None

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
        if split not in self.index:
            raise ValueError(f"There is no split {split!r} in this data; it has {', '.join(self.index)}.")
        return _pipeline(self, split, shuffle=False, augment=None)

    def augmented(self, augment: str | keras.Layer | None) -> Data:
        """Get the same data with training pictures augmented in another way; nothing is read or split again.

        Args:
            augment: None, "light" or a Keras layer, as in `load_folder`.

        Raises:
            ValueError: when `augment` is none of these.
        """
        return dataclasses.replace(self, augment=augment)

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
    _check_whole("batch_size", batch_size)
    _augmentation(augment)
    split = Split() if split is None else split
    if not isinstance(split, Split | Manifest):
        raise ValueError(f"split is a Split(…) or what read_manifest(…) returned, not {split!r}.")
    scan = scan_folder(path, image_size=image_size)
    sides, duplicates = split_files(scan.pictures, split, seed=seed)
    notes = list(scan.notes)
    unlisted = [p.path for p, side in zip(scan.pictures, sides, strict=True) if not side]
    set_aside = (*scan.set_aside, *(SetAside(path, "not in the manifest") for path in unlisted))
    position = {name: label for label, name in enumerate(scan.class_names)}
    labels = np.array([position[picture.class_name] for picture in scan.pictures])
    index = _index(sides)
    if missing := [name for name in ("train", "validation") if name not in index]:
        raise ValueError(f"No picture is in {' and '.join(missing)}: the manifest or the folders leave it empty.")
    for side, numbers in index.items():
        absent = set(position.values()) - set(labels[numbers])
        if absent:
            names = ", ".join(scan.class_names[label] for label in sorted(absent))
            notes.append(f"{side} holds no picture of {names}")
    files = [scan.root / picture.path for picture in scan.pictures]

    def decode(numbers: np.ndarray) -> np.ndarray:
        return np.stack([decode_picture(files[number], image_size) for number in numbers])

    data = Data(
        class_names=scan.class_names,
        image_size=image_size,
        batch_size=batch_size,
        paths={side: [scan.pictures[number].path for number in numbers] for side, numbers in index.items()},
        labels={side: labels[numbers] for side, numbers in index.items()},
        hashes={side: [scan.pictures[number].sha256 for number in numbers] for side, numbers in index.items()},
        pixels=decode if scan.pixels is None else _hold(scan.pixels),
        index=index,
        seed=seed,
        augment=augment,
        set_aside=set_aside,
        duplicates=duplicates,
        notes=tuple(notes),
        cache=scan.cache,
        root=scan.root,
    )
    _say(data)
    return data


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
        labels: (n,) names or whole numbers for classification; (n,) floats for regression; (n, k) zeros and ones for
            multi-label classification, or floats for k numbers. Only classes are stratified.
        class_names: what label 0, 1, … is called; by default the labels themselves, sorted.
        batch_size: pictures a batch.
        seed: decides the split and the order of training pictures.
        split: shares and groups (one key a picture).

    Returns:
        A Data without paths; see `Data.augmented` for augmentation.

    Raises:
        ValueError: when shapes, ranges or labels are not as above.

    >>> import numpy as np
    >>> images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    >>> data = load_arrays(images, ["cat", "dog"] * 10)
    >>> data.counts["validation"]
    {'cat': 2, 'dog': 2}
    """
    images = _check_images(np.asarray(images))
    labels, names = _check_labels(np.asarray(labels), class_names, len(images))
    digests = [hashlib.sha256(np.ascontiguousarray(image)).hexdigest() for image in images]
    return _from_pixels(images, labels, names, digests, split or Split(), batch_size=batch_size, seed=seed)


def load_tfds(
    name: Any,
    *,
    data_dir: str | os.PathLike | None = None,
    image_size: int = 224,
    batch_size: int = 32,
    seed: int = 0,
    split: Split | None = None,
) -> Data:
    """Get training, validation and test pictures from TensorFlow Datasets.

    Use it for published sets. The set's own "train", "validation" and "test" are used; what it lacks is cut from
    "train" once, stratified, so nothing leaks. Pictures are decoded as everywhere in this package.

    Args:
        name: a name such as "tf_flowers"; a folder with a prepared set; or a builder, for example
            `tfds.folder_dataset.ImageFolder(path)`.
        data_dir: where prepared sets lie or are put; None is TFDS's own place (~/tensorflow_datasets).
        image_size: side in pixels of the square that pictures are stretched to.
        batch_size: pictures a batch.
        seed: decides the split and the order of training pictures.
        split: shares for what the set does not give itself, and groups (one key a training picture).

    Returns:
        A Data without paths; see `Data.augmented` for augmentation.

    Raises:
        ValueError: when there is no such set, or it does not pair a picture with a class, or it is too large for
            memory and disk.
        ConnectionError: when the set is neither prepared nor to be had by download.
    """
    builder = _prepare(name, data_dir)
    info = builder.info
    keys = info.supervised_keys
    if not keys or not hasattr(info.features[keys[1]], "names"):
        raise ValueError(f"The set {info.name!r} does not pair a picture with a class: {info.features}.")
    found = {SPLIT_FOLDERS[key.lower()]: key for key in info.splits if key.lower() in SPLIT_FOLDERS}
    if "train" not in found:
        raise ValueError(f"The set {info.name!r} has the splits {list(info.splits)}, and no 'train' among them.")
    sizes = {side: info.splits[found[side]].num_examples for side in SPLITS if side in found}
    total = sum(sizes.values())
    pixels, cache = reserve(total, image_size)
    if pixels is None:
        raise ValueError(f"{total:,} pictures of {image_size} px fit neither memory nor disk; ask for smaller ones.")
    given, labels, digests, set_aside = [], [], [], []
    for side in sizes:
        for number, (picture, label) in enumerate(_examples(builder, found[side])):
            try:
                pixels[len(given)] = decode_picture(picture, image_size)
            except ValueError as error:
                set_aside.append(SetAside(f"{found[side]}[{number}]", str(error)))
                continue
            digests.append(hashlib.sha256(picture).hexdigest())
            labels.append(int(label))
            given.append(side if len(sizes) > 1 else None)
    names = tuple(info.features[keys[1]].names)
    return _from_pixels(
        pixels[: len(given)],
        np.array(labels),
        names,
        digests,
        split or Split(),
        batch_size=batch_size,
        seed=seed,
        given=given,
        set_aside=tuple(set_aside),
        cache=cache,
    )


def light_augmentation(seed: int = 0) -> keras.Sequential:
    """Get layers that mirror, zoom and shift a little, to put inside a model.

    Use it where the augmentation should travel with the model or run on the accelerator; `augment="light"` in
    `load_folder` does nearly the same in the pipeline, about six times faster on a CPU. Export the model without it.

    Args:
        seed: decides the sequence of changes.

    Returns:
        A keras.Sequential from (batch, height, width, 3) in [0, 255] to the same; it changes nothing at inference.
    """
    layers = keras.layers
    return keras.Sequential(
        [
            layers.RandomFlip("horizontal", seed=seed),
            layers.RandomZoom((WINDOW - 1, 0.0), fill_mode="reflect", seed=seed + 1),
            layers.RandomTranslation((1 - WINDOW) / 4, (1 - WINDOW) / 4, fill_mode="reflect", seed=seed + 2),
        ],
        name="light_augmentation",
    )


def _pipeline(data: Data, split: str, *, shuffle: bool, augment: str | keras.Layer | None) -> Any:
    import tensorflow as tf

    numbers, labels, size = data.index[split], data.labels[split], data.image_size
    source = data.pixels

    def load(batch: Any) -> Any:
        if not callable(source):
            return tf.gather(source, batch)
        return tf.ensure_shape(tf.numpy_function(source, [batch], tf.uint8, stateful=False), (None, size, size, 3))

    with tf.device("CPU:0"):
        pictures = tf.data.Dataset.from_tensor_slices((numbers, labels))
        if shuffle:
            # Numbers are shuffled, not pictures: the buffer can hold all of them.
            pictures = pictures.shuffle(len(numbers), seed=data.seed, reshuffle_each_iteration=True)
        pictures = pictures.batch(data.batch_size)
        pictures = pictures.map(lambda batch, label: (load(batch), label), num_parallel_calls=tf.data.AUTOTUNE)
        change = _augmentation(augment)
        if change is None:
            pictures = pictures.map(lambda image, label: (tf.cast(image, tf.float32), label))
        else:
            # A number drawn for each batch of each epoch: batches do not depend on which thread came first, nor on
            # whether somebody has looked at a few of them before.
            draws = tf.data.Dataset.random(data.seed, rerandomize_each_iteration=True).batch(2, drop_remainder=True)
            pictures = tf.data.Dataset.zip(pictures, draws).map(
                lambda pair, draw: (change(pair[0], draw), pair[1]),
                # Keras layers keep their random state in a variable, which threads would race for.
                num_parallel_calls=tf.data.AUTOTUNE if augment == "light" else None,
            )
        return pictures.prefetch(tf.data.AUTOTUNE)


def _hold(pixels: np.ndarray) -> Any:
    """Give pictures in memory to TensorFlow: read four times as fast, and freed with the dataset.

    What a `numpy_function` refers to is never freed, so that is for a file or for paths only.
    """
    import tensorflow as tf

    if isinstance(pixels, np.memmap):
        return pixels.__getitem__
    with tf.device("CPU:0"):  # an accelerator's memory is for the network
        return tf.convert_to_tensor(pixels)


def _augmentation(augment: str | keras.Layer | None) -> Callable | None:
    if augment is None:
        return None
    if isinstance(augment, str) and augment == "light":
        return _light
    if not isinstance(augment, keras.Layer):
        raise ValueError(f'augment is None, "light" or a Keras layer, not {augment!r}.')
    # One by one: a Sequential does not run inside tf.data on the JAX and torch backends, its layers do.
    layers = list(getattr(augment, "layers", None) or [augment])
    generators = [getattr(layer, "generator", None) or getattr(layer, "seed_generator", None) for layer in layers]

    def change(images: Any, draw: Any) -> Any:
        import tensorflow as tf

        images = tf.cast(images, tf.float32)
        for number, (layer, generator) in enumerate(zip(layers, generators, strict=True)):
            if generator is not None and keras.backend.backend() == "tensorflow":
                generator.state.assign(tf.cast(draw + number, generator.state.dtype))
            images = layer(images, training=True)
        return tf.cast(images, tf.float32)

    return change


def _light(images: Any, draw: Any) -> Any:
    """Mirror and take a window, in one operation: about six times as fast as three Keras layers."""
    import tensorflow as tf

    count, size = tf.shape(images)[0], images.shape[1]
    random = tf.random.stateless_uniform((4, count), draw)
    side = WINDOW + (1 - WINDOW) * random[0]
    top, left = random[1] * (1 - side), random[2] * (1 - side)
    near, far = left, left + side
    mirrored = random[3] < 0.5
    first, last = tf.where(mirrored, far, near), tf.where(mirrored, near, far)
    boxes = tf.stack([top, first, top + side, last], axis=1)
    return tf.image.crop_and_resize(images, boxes, tf.range(count), (size, size))


def _from_pixels(
    pixels: np.ndarray,
    labels: np.ndarray,
    class_names: tuple[str, ...],
    digests: list[str],
    split: Split,
    *,
    batch_size: int,
    seed: int,
    given: list[str | None] | None = None,
    set_aside: tuple[SetAside, ...] = (),
    cache: str = "memory",
) -> Data:
    """Split pictures without files: equal bytes stay together, and the position takes the place of the path."""
    if not isinstance(split, Split):
        raise ValueError(f"split is a Split(…) here, not {split!r}: a manifest needs files.")
    if callable(split.groups) or isinstance(split.groups, str):
        raise ValueError("There are no paths here: pass groups as one key a picture.")
    same = np.unique(digests, return_inverse=True)[1]
    groups = group_keys(digests, split.groups)
    pieces = same if groups is None else join([same, groups])
    classes = [class_names[label] for label in labels] if labels.dtype.kind == "i" else None
    names = [str(number) for number in range(len(pixels))]
    sides = deal(classes, pieces, names, split=split, seed=seed, given=given)
    index = _index(sides)
    order = np.argsort(same, kind="stable")
    sets = np.split(order, np.flatnonzero(np.diff(same[order])) + 1)
    data = Data(
        class_names=class_names,
        image_size=pixels.shape[1],
        batch_size=batch_size,
        paths=dict.fromkeys(index),
        labels={side: labels[numbers] for side, numbers in index.items()},
        hashes=dict.fromkeys(index),
        pixels=_hold(pixels),
        index=index,
        seed=seed,
        set_aside=set_aside,
        duplicates=tuple(tuple(str(number) for number in found) for found in sets if len(found) > 1),
        cache=cache,
    )
    _say(data)
    return data


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
    if labels.ndim == 2 or labels.dtype.kind == "f":
        labels = labels.astype(np.float32)
        if not np.isfinite(labels).all():
            raise ValueError("Labels must be finite numbers; drop the pictures without a label first.")
        width = labels.shape[1] if labels.ndim == 2 else 1
        names = tuple(class_names or (["value"] if labels.ndim == 1 else [str(column) for column in range(width)]))
        if len(names) != width:
            raise ValueError(f"Expected {width} class names for labels of shape {labels.shape}, got {len(names)}.")
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


def _prepare(name: Any, data_dir: str | os.PathLike | None) -> Any:
    import tensorflow_datasets as tfds

    if isinstance(name, tfds.core.DatasetBuilder):
        return name
    if os.path.isdir(name) and os.path.exists(os.path.join(name, "dataset_info.json")):
        return tfds.builder_from_directory(os.fspath(name))
    try:
        builder = tfds.builder(os.fspath(name), data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        near = difflib.get_close_matches(str(name), tfds.list_builders(with_community_datasets=False), n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"TensorFlow Datasets knows no set {str(name)!r}{hint}") from error
    try:
        builder.download_and_prepare()
    except Exception as error:  # whatever breaks on the way: network, checksum, a missing archive
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConnectionError(
            f"The set {builder.info.full_name!r} could not be prepared: {first[:300]}. It was looked for in "
            f"{str(builder.data_dir)!r}. Prepare it where there is a network and pass data_dir=…, or use load_folder."
        ) from error
    return builder


def _examples(builder: Any, split: str) -> Any:
    """Yield (file content, label); what a builder gives only decoded is put in PNG, which loses nothing."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    key = builder.info.supervised_keys[0]
    # In the order of the files: shuffled reading would make another split each time.
    config = tfds.ReadConfig(interleave_cycle_length=1)
    options = {"split": split, "shuffle_files": False, "as_supervised": True, "read_config": config}
    try:
        examples = builder.as_dataset(decoders={key: tfds.decode.SkipDecoding()}, **options)
    except NotImplementedError:
        examples = builder.as_dataset(**options)
    for picture, label in examples.as_numpy_iterator():
        yield (picture if isinstance(picture, bytes) else tf.io.encode_png(picture).numpy()), label


def _index(sides: list[str]) -> dict[str, np.ndarray]:
    index = {side: np.flatnonzero([other == side for other in sides]) for side in SPLITS}
    return {side: numbers for side, numbers in index.items() if len(numbers)}


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
        more = "; …" if len(data.set_aside) > 5 else ""
        logger.warning("%d files or folders set aside: %s%s", len(data.set_aside), shown, more)
    for note in data.notes:
        logger.warning("%s", note)
    if data.duplicates:
        logger.warning("%d sets of pictures look the same, such as %s", len(data.duplicates), data.duplicates[0])
    if data.class_weight:
        logger.warning("classes are out of balance; class_weight for fit: %s", _weights(data))


def _weights(data: Data) -> str:
    return ", ".join(f"{data.class_names[label]} {weight:.2f}" for label, weight in data.class_weight.items())


def _check_whole(name: str, value: int) -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is a whole number from 1, not {value!r}.")
