"""Features: what a frozen backbone makes of pictures. CS231n calls them CNN codes.

Pictures come as batches: a `tf.data.Dataset`, a `keras.utils.PyDataset` or a torch `DataLoader` of (images, labels),
images (batch, height, width, 3) in [0, 255], of known length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import keras
import numpy as np

from tlkeras.freezing import trainable_layers, transfer_of
from tlkeras.heads import AUGMENTATION

CACHE_LIMIT = 2_000_000_000  # bytes of features that training keeps in memory
POOLING = keras.layers.GlobalAveragePooling2D | keras.layers.GlobalMaxPooling2D | keras.layers.Flatten


def cut_point(model: keras.Model) -> str | None:
    """Get the name of the highest layer of a classifier below which nothing trains, or None if there is no such stage.

    With the whole backbone frozen that is the pooling of the head, or the last stage if the head has none. Else it is
    the last stage below the unfrozen layers.
    """
    transfer = transfer_of(model)
    opened = trainable_layers(model)
    if not opened:
        return _feature_layer(model)
    layers = transfer.backbone_layers
    below = [stage for stage in transfer.stages if layers.index(stage) < layers.index(opened[0])]
    return below[-1] if below else None


def feature_model(model: keras.Model, layer: str | None = None) -> keras.Model:
    """Get a classifier up to a layer: from raw pictures to, by default, the features that its head takes."""
    return keras.Model(model.inputs[0], model.get_layer(layer or _feature_layer(model)).output)


def _feature_layer(model: keras.Model) -> str:
    """The pooling that the head begins with; for another head the backbone's last stage."""
    transfer = transfer_of(model)
    first = transfer.head_layers[0]
    return first if isinstance(model.get_layer(first), POOLING) else transfer.stages[-1]


def top_model(model: keras.Model) -> keras.Model:
    """Get what lies above the cut point, up to the logits; the same layers, so what trains here trains there."""
    return keras.Model(model.get_layer(cut_point(model)).output, model.outputs[0])


def count_views(model: keras.Model, num_pictures: int, views: int) -> int:
    """Get how many views to store features of: `views`, or 0 where they would not fit or the lowest stage trains."""
    cut = cut_point(model)
    shape = (None,) if cut is None else model.get_layer(cut).output.shape[1:]
    if not views or None in shape:
        return 0
    return views if 4 * math.prod(shape) * num_pictures * views <= CACHE_LIMIT else 0


def compute_features(
    model: keras.Model, batches: Iterable, *, views: int = 1, layer: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Run the frozen part of a classifier over a data set, once for each view, and keep what comes out.

    A frozen network gives the same answer every epoch, so one pass replaces an epoch of forward passes in each
    epoch of training.

    Args:
        model: From `build_classifier`.
        batches: (images, labels) batches; images (batch, height, width, 3) in [0, 255].
        views: Passes. The first is without the model's augmentation, each further one with it.
        layer: Whose output; None is what the head's first layer with weights takes: pooled features, (batch,
            channels), for the default head.

    Returns:
        Features, float32, (views * pictures, ...), and labels in the same order.

    Raises:
        ValueError: If `batches` is empty, without end, or not something that can be gone through again.
    """
    count_batches(batches)
    forward = _forward(model, layer)
    outputs, labels = [], []
    for view in range(views):
        for images, truth in batches:
            outputs.append(np.asarray(forward(images, view > 0), dtype="float32"))
            labels.append(keras.ops.convert_to_numpy(truth))
    return np.concatenate(outputs), np.concatenate(labels)


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
        raise ValueError(
            "Pictures come as a tf.data.Dataset, a keras.utils.PyDataset with a length or a torch DataLoader of "
            f"(images, labels) batches, got {type(batches).__name__}. For arrays: load_arrays(images, labels).train."
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


def check_batches(model: keras.Model, batches: Iterable) -> int:
    """Refuse data whose first batch cannot be right, before time is spent on them; get the number of pictures.

    Raises:
        ValueError: As `count_batches`; or if a batch is no pair, or pictures are not raw and in [0, 255], or labels do
            not fit the task.
    """
    count = count_batches(batches)
    batch = next(iter(batches))
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError("Each batch must be a pair (images, labels), as in `data.train`.")
    images, labels = map(keras.ops.convert_to_numpy, batch)
    if images.shape[1:] != model.input_shape[1:]:
        raise ValueError(f"The model takes pictures of shape {model.input_shape}, got {images.shape}.")
    low, high = float(images.min()), float(images.max())
    if not (low > -0.5 and 1.5 < high < 255.5):
        raise ValueError(
            f"Pictures must be raw, in [0, 255]; the first batch lies in [{low:.3g}, {high:.3g}]. The model does the "
            "preprocessing itself: leave out `preprocess_input` and any division by 255."
        )
    check_labels(model, labels)
    return count * len(images)


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
        }[task]
    )
    if not np.all(fits):
        wanted = {
            "classification": f"whole numbers from 0 to {width - 1}, (pictures,)",
            "binary": "0 or 1, (pictures,)",
            "multi-label": f"0 or 1, (pictures, {width})",
            "regression": f"finite numbers, (pictures, {width})",
        }[task]
        raise ValueError(
            f"Labels for {task} are {wanted}; got {labels.dtype} of shape {labels.shape}: {labels[:4]} ..."
        )


def _forward(model: keras.Model, layer: str | None) -> Callable[[object, bool], np.ndarray]:
    """The frozen part as a compiled function of pictures and whether to augment them."""
    # Only the augmentation acts as in training; batch norm must not, whatever is frozen.
    network, augmentation = feature_model(model, layer), model.get_layer(AUGMENTATION)
    if keras.backend.backend() != "tensorflow":
        to_tensor = keras.ops.convert_to_tensor
        return lambda images, augmented: network.predict_on_batch(
            augmentation(to_tensor(images, "float32"), training=augmented)
        )
    import tensorflow as tf

    def compile_for(augmented: bool):
        # Of any batch size: no retracing for the last one. `predict` costs twice as much a batch.
        signature = [tf.TensorSpec(network.input_shape, tf.float32)]
        return tf.function(lambda images: network(augmentation(images, training=augmented), training=False), signature)

    compiled = {augmented: compile_for(augmented) for augmented in (False, True)}
    return lambda images, augmented: compiled[augmented](tf.cast(images, tf.float32)).numpy()
