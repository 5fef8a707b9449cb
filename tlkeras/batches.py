"""Batches: what training and extraction take, and the refusal of what cannot be right.

Pictures come as batches: a `tf.data.Dataset`, a `keras.utils.PyDataset` or a torch `DataLoader` of (images, labels),
images (batch, height, width, 3) in [0, 255], of known length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import keras
import numpy as np

from tlkeras.freezing import transfer_of
from tlkeras.pipelines import check_pictures


def count_batches(batches: Iterable) -> int:
    """Get the number of batches.

    Raises:
        ValueError: If there are none, or no end, or nobody knows, or Keras's `fit` would not take them.
    """
    if hasattr(batches, "cardinality"):
        count = int(batches.cardinality())
    elif hasattr(batches, "__len__") and not isinstance(batches, list | tuple | dict | np.ndarray):
        count = len(batches)
    else:
        whole = hasattr(batches, "ordered")  # the `Data` of a loader
        hint = "Give one of its splits: data.train." if whole else "For arrays: make_batches(images, labels)."
        raise ValueError(
            "Pictures come as a tf.data.Dataset, a keras.utils.PyDataset with a length or a torch DataLoader of "
            f"(images, labels) batches, got {type(batches).__name__}. {hint}"
        )
    if count == 0:
        raise ValueError("The data set is empty: it has no batch. Has a filter or `take(0)` emptied it?")
    if count == -1:
        raise ValueError("The data set never ends: leave out `repeat()`, epochs are counted here.")
    if count < 0:
        raise ValueError(
            "The number of batches is unknown: add `.apply(tf.data.experimental.assert_cardinality(number))`."
        )
    return count


def one_pass(batches: Iterable) -> Iterator:
    """Go through batches once. A `PyDataset` goes by its length: iterating `ImageDataGenerator.flow` never ends."""
    if not isinstance(batches, keras.utils.PyDataset):
        yield from batches
        return
    yield from (batches[number] for number in range(len(batches)))
    batches.on_epoch_end()


def check_batches(model: keras.Model, batches: Iterable) -> int:
    """Refuse data whose first batch cannot be right, before time is spent on them; get the number of pictures.

    Raises:
        ValueError: As `count_batches`; or if a batch is no pair, or pictures are not raw and in [0, 255], or labels do
            not fit the task.
    """
    count = count_batches(batches)
    batch = next(one_pass(batches))
    check_pictures(batch, model.input_shape)
    check_labels(model, keras.ops.convert_to_numpy(batch[1]))
    return count * len(batch[0])


def check_labels(model: keras.Model, labels: np.ndarray) -> None:
    """Refuse labels, (pictures,) or (pictures, outputs), that do not fit the model's task with a ValueError."""
    task, width = transfer_of(model).task, model.output_shape[-1]
    vector, matrix = labels.shape[1:] in ((), (1,)), labels.shape[1:] == (width,)
    fits = (
        labels.dtype.kind in "iufb"
        and {
            "classification": vector and np.isin(labels, range(width)),
            "binary": vector and np.isin(labels, (0, 1)),
            "multi-label": matrix and (0 <= labels) & (labels <= 1),
            "regression": (matrix or (vector and width == 1)) and np.isfinite(labels),
            "detection": labels.shape[1:] == model.output_shape[1:] and np.isfinite(labels),
        }[task]
    )
    if not np.all(fits):
        wanted = {
            "classification": f"whole numbers from 0 to {width - 1}, (pictures,)",
            "binary": "0 or 1, (pictures,)",
            "multi-label": f"0 or 1, (pictures, {width})",
            "regression": f"finite numbers, (pictures, {width})",
            "detection": f"maps of encode_objects(), (pictures, {', '.join(map(str, model.output_shape[1:]))})",
        }[task]
        raise ValueError(
            f"Labels for {task} are {wanted}; got {labels.dtype} of shape {labels.shape}: {labels.ravel()[:4]} ..."
        )
