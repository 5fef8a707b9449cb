"""Pipelines: pictures that are decoded once, as tf.data for training and as plain arrays for one pass.

The order of the pipeline is the lesson: decode once, cache, shuffle, batch, augment, prefetch. A cache after the
augmentation would freeze it, and a split made on a shuffled dataset would leak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from tlkeras.arguments import whole_number
from tlkeras.augmentation import change_batch
from tlkeras.pictures import PictureFile


class Pixels:
    """Decoded pictures in memory, in a file, or decoded anew by a function; shared by all data made of them."""

    def __init__(self, source: np.ndarray | PictureFile | Callable[[np.ndarray], np.ndarray]):
        """Take an array (picture, height, width, 3), a `PictureFile`, or a function from numbers to such an array."""
        self._read = source if callable(source) else source.__getitem__
        self._array = source if isinstance(source, np.ndarray) else None

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """Get pictures as they are stored, without TensorFlow where nothing has been trained on them."""
        if self._array is None or isinstance(self._array, np.ndarray):
            return np.asarray(self._read(numbers))
        import tensorflow as tf

        return tf.gather(self._array, numbers).numpy()

    def gather(self, numbers: Any, size: int) -> Any:
        """Get pictures inside a tf.data pipeline."""
        import tensorflow as tf

        if self._array is None:
            return tf.ensure_shape(tf.numpy_function(self._read, [numbers], tf.uint8, False), (None, size, size, 3))
        return tf.gather(self._array, numbers)

    def hold(self) -> None:
        """Give pictures in memory to TensorFlow: read four times as fast, and freed with the last dataset of them.

        What a `numpy_function` refers to is never freed, so that is only for a file or for paths.
        """
        import tensorflow as tf

        if isinstance(self._array, np.ndarray):
            with tf.device("CPU:0"):  # an accelerator's memory is for the network
                self._array = tf.convert_to_tensor(self._array)
            self._read = None  # the array is not wanted twice


class PictureBatches:
    """Pictures of one split in order, as numpy batches (images as stored, labels): what one pass wants."""

    def __init__(self, pixels: Pixels, numbers: np.ndarray, labels: np.ndarray, batch_size: int):
        """Take the numbers of the pictures and a label for each."""
        self._pixels, self._numbers, self._labels, self._size = pixels, numbers, labels, batch_size

    def __len__(self) -> int:
        """Get the number of batches."""
        return -(-len(self._numbers) // self._size)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Go through the batches; as often as wanted."""
        for start in range(0, len(self._numbers), self._size):
            rows = slice(start, start + self._size)
            yield self._pixels.read(self._numbers[rows]), self._labels[rows]


def make_pipeline(
    pixels: Pixels,
    numbers: np.ndarray,
    labels: np.ndarray,
    *,
    image_size: int,
    batch_size: int,
    shuffle: int | None = None,
    augment: str | keras.Layer | None = None,
) -> Any:
    """Get a tf.data.Dataset of (float32 images (batch, height, width, 3) in [0, 255], labels (batch,)).

    Args:
        pixels: all pictures.
        numbers: which of them.
        labels: one each.
        image_size: side in pixels.
        batch_size: pictures a batch.
        shuffle: the seed of the order and of the augmentation; None is no shuffling.
        augment: as in `load_folder`; only with `shuffle`.
    """
    import tensorflow as tf

    pixels.hold()
    with tf.device("CPU:0"):
        pictures = tf.data.Dataset.from_tensor_slices((numbers, labels))
        if shuffle is not None:
            # Numbers are shuffled, not pictures: the buffer can hold all of them.
            pictures = pictures.shuffle(len(numbers), seed=shuffle, reshuffle_each_iteration=True)
        pictures = pictures.batch(batch_size)
        change = change_batch(augment)
        if change is None:
            pictures = pictures.map(
                lambda batch, label: (tf.cast(pixels.gather(batch, image_size), tf.float32), label),
                num_parallel_calls=tf.data.AUTOTUNE,
            )
            return without_autotuning(pictures.prefetch(2))
        pictures = pictures.map(
            lambda batch, label: (pixels.gather(batch, image_size), label), num_parallel_calls=tf.data.AUTOTUNE
        )
        # A number drawn for each batch of each epoch: batches do not depend on which thread came first, nor on
        # whether somebody has looked at a few of them before.
        draws = tf.data.Dataset.random(shuffle, rerandomize_each_iteration=True).batch(2, drop_remainder=True)
        pictures = tf.data.Dataset.zip(pictures, draws).map(
            lambda pair, draw: (change(pair[0], draw), pair[1]),
            # Keras layers keep their random state in a variable, which threads would race for.
            num_parallel_calls=tf.data.AUTOTUNE if augment == "light" else None,
        )
        return without_autotuning(pictures.prefetch(2))


def make_batches(images: np.ndarray, labels: np.ndarray, *, batch_size: int = 32, seed: int | None = None) -> Any:
    """Get arrays as batches, which training and extraction take: in order, or shuffled anew in each pass.

    As `from_tensor_slices((images, labels)).shuffle(...).batch(...)`, but a pass does not wait at its end; see
    `without_autotuning`. For a split into training, validation and test take `load_arrays`.

    Args:
        images: pictures in [0, 255], or anything else with one row an example, such as features.
        labels: one row each.
        batch_size: examples a batch.
        seed: of the order; None keeps the order.

    Returns:
        A tf.data.Dataset of (float32 images (batch, ...), labels (batch, ...)).

    Raises:
        ValueError: If there is no image, not one label an image, or batch_size is no whole number from 1.

    Example:
    >>> import numpy as np
    >>> import tlkeras as tl
    >>> [labels.numpy().tolist() for _, labels in tl.make_batches(np.zeros((5, 8, 8, 3)), np.arange(5), batch_size=2)]
    [[0, 1], [2, 3], [4]]
    """
    whole_number("batch_size", batch_size, 1)
    if len(images) != len(labels) or not len(labels):
        raise ValueError(f"It takes images, and one label an image; got {len(images)} images and {len(labels)} labels.")
    numbers = np.arange(len(labels))
    return make_pipeline(Pixels(np.asarray(images)), numbers, labels, image_size=0, batch_size=batch_size, shuffle=seed)


def check_pictures(batch: Any, shape: tuple) -> None:
    """Refuse a batch that cannot be right for a network that takes `shape`, (None, height, width, 3).

    Raises:
        ValueError: If it is no pair (images, labels), or the pictures have another shape or are not raw, in [0, 255].
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError("Each batch must be a pair (images, labels), as in `data.train`.")
    images = keras.ops.convert_to_numpy(batch[0])
    sides = zip(images.shape[1:], shape[1:], strict=False)
    if images.ndim != len(shape) or any(wanted not in (None, side) for side, wanted in sides):
        raise ValueError(f"The model takes pictures of shape {shape}, got {images.shape}.")
    check_range(images)


def check_data(data: Any) -> None:
    """Refuse what is no `Data` of a loader, such as one of its splits, with a ValueError."""
    if not hasattr(data, "ordered"):
        raise ValueError(
            "data is what load_folder, load_arrays or load_tfds gave, as a whole and not one of its splits; "
            f"got {type(data).__name__}."
        )


def check_range(images: np.ndarray) -> None:
    """Refuse pictures that are not raw.

    Raises:
        ValueError: If they do not lie in [0, 255], or look as if they had been divided by 255.
    """
    low, high = float(images.min()), float(images.max())
    if not (low > -0.5 and 1.5 < high < 255.5) and (low, high) != (0, 0):  # black is black in either range
        raise ValueError(
            f"Pictures must be raw, in [0, 255]; these lie in [{low:.3g}, {high:.3g}]. The model does the "
            "preprocessing itself: leave out `preprocess_input` and any division by 255."
        )


def without_autotuning(batches: Any) -> Any:
    """Get the same tf.data.Dataset with its autotuner off; anything else as it is.

    The autotuner's thread naps for 10 ms, then 20, 40 and so on up to a minute, and who closes an iterator often waits
    until it wakes: the call that wakes it comes before the note that the iterator is cancelled, so it naps again. Thus
    a pass takes up to twice as long as its work (`benchmarks/autotuning.py`). AUTOTUNE then means a call for each core.
    """
    if not hasattr(batches, "with_options"):
        return batches
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.with_options(options)
