"""Published sets: `Data` from TensorFlow Datasets, downloaded or prepared before."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from tlkeras.data import Data, check_options
from tlkeras.loaders import split_pixels
from tlkeras.pictures import PictureError, decode_picture, reserve
from tlkeras.pipelines import without_autotuning
from tlkeras.scan import SPLIT_FOLDERS, SetAside
from tlkeras.splits import SPLITS, Split

RETRIES = 4  # of a download, after 0.2, 0.4, 0.8 and 1.6 seconds


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
        split: shares for what the set does not give itself, and groups (one key a picture that can be used, first all
            of "train", then of "validation", then of "test").

    Returns:
        A Data without paths; see `Data.augmented` for augmentation.

    Raises:
        ValueError: when there is no such set, or it does not pair a picture with a class, or it is too large for
            memory and disk.
        ConnectionError: when the set is neither prepared nor to be had by download.
        ImportError: when TensorFlow Datasets is not installed.
    """
    check_options(batch_size)
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
    names = tuple(info.features[keys[1]].names)
    for side in sizes:
        for number, (picture, label) in enumerate(_examples(builder, found[side])):
            try:
                if not 0 <= label < len(names):
                    raise PictureError(f"its label is {label}, which is none of the {len(names)} classes")
                pixels[len(given)] = decode_picture(picture, image_size)
            except PictureError as error:
                set_aside.append(SetAside(f"{found[side]}[{number}]", error.reason))
                continue
            digests.append(hashlib.sha256(picture).hexdigest())
            labels.append(int(label))
            given.append(side if len(sizes) > 1 else None)
    if not given:
        raise ValueError(f"None of the {total:,} examples of {info.name!r} can be used: {set_aside[0].reason}.")
    return split_pixels(
        pixels[: len(given)],
        np.array(labels),
        digests,
        split=split,
        class_names=names,
        batch_size=batch_size,
        seed=seed,
        given=given,
        set_aside=tuple(set_aside),
        cache=cache,
    )


@contextlib.contextmanager
def _retries(count: int) -> Iterator[None]:
    """Let TFDS give up sooner: it tries ten times more, and in a class room that is offline waits for 3.5 minutes."""
    from tensorflow_datasets.core.download import downloader

    before, downloader.MAX_RETRIES = downloader.MAX_RETRIES, count
    try:
        yield
    finally:
        downloader.MAX_RETRIES = before


def _prepare(name: Any, data_dir: str | os.PathLike | None) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        message = "load_tfds needs TensorFlow Datasets: pip install tensorflow-datasets importlib_resources"
        raise ImportError(message) from error

    if isinstance(name, tfds.core.DatasetBuilder):
        return name
    if os.path.isdir(name) and os.path.exists(os.path.join(name, "dataset_info.json")):
        return tfds.builder_from_directory(os.fspath(name))
    if os.path.isdir(name):
        raise ValueError(
            f"{os.fspath(name)!r} is no prepared set: it holds no dataset_info.json, which lies in the folder of a "
            "version, such as tf_flowers/3.0.1. For class folders there is load_folder."
        )
    try:
        builder = tfds.builder(os.fspath(name), data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        near = difflib.get_close_matches(str(name), tfds.list_builders(with_community_datasets=False), n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"TensorFlow Datasets knows no set {str(name)!r}{hint}") from error
    try:
        with _retries(RETRIES):
            builder.download_and_prepare()
    except Exception as error:  # whatever breaks on the way: network, checksum, a missing archive
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConnectionError(
            f"The set {builder.info.full_name!r} could not be prepared: {first[:300]}. It was looked for in "
            f"{str(builder.data_dir)!r}. Prepare it where there is a network and pass data_dir=…, or use load_folder."
        ) from error
    return builder


def _examples(builder: Any, split: str) -> Iterator[tuple[bytes, Any]]:
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
    for picture, label in without_autotuning(examples).as_numpy_iterator():
        yield (picture if isinstance(picture, bytes) else tf.io.encode_png(picture).numpy()), label
