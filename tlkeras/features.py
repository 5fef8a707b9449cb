"""Features: what a frozen backbone makes of pictures. CS231n calls them CNN codes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import keras
import numpy as np


def feature_model(model: keras.Model) -> keras.Model:
    """Get the frozen part of a classifier: from raw pictures to what the first layer with weights of the head takes.

    For the default head that is the pooled features, (batch, channels).
    """
    transfer = model.transfer
    cut = "pool" if transfer.head_layers[0] == "pool" else transfer.stages[-1]
    return keras.Model(model.inputs[0], model.get_layer(cut).output)


def compute_features(model: keras.Model, batches: Iterable, *, views: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Run the frozen part of a classifier over a data set, once for each view, and keep what comes out.

    A frozen network gives the same answer every epoch, so one pass replaces an epoch of forward passes in each
    epoch of training.

    Args:
        model: From `build_classifier`, its backbone frozen.
        batches: (images, labels) batches; images (batch, height, width, 3) in [0, 255].
        views: Passes. The first is without augmentation, each further one with the model's augmentation.

    Returns:
        Features, float32, (views * pictures, ...), and labels in the same order.
    """
    network = feature_model(model)
    outputs, labels = [], []
    forward = _forward(network)
    for view in range(views):
        for images, truth in batches:
            outputs.append(np.asarray(forward(images, view > 0), dtype="float32"))
            labels.append(np.asarray(truth))
    if not outputs:
        raise ValueError("The data set holds no batch. Has a filter or a `repeat(0)` emptied it?")
    return np.concatenate(outputs), np.concatenate(labels)


def _forward(network: keras.Model) -> Callable[[object, bool], np.ndarray]:
    """The network as compiled functions where the backend has them; `predict` costs twice as much a batch."""
    if keras.backend.backend() != "tensorflow":
        to_tensor = keras.ops.convert_to_tensor
        return lambda images, training: keras.ops.convert_to_numpy(network(to_tensor(images), training=training))
    import tensorflow as tf

    # One graph for training and one for inference, of any batch size: no retracing for the last, smaller batch.
    signature = [tf.TensorSpec(network.input_shape, tf.float32)]
    graphs = {
        training: tf.function(lambda images, training=training: network(images, training=training), signature)
        for training in (False, True)
    }
    return lambda images, training: graphs[training](tf.cast(images, tf.float32)).numpy()
