"""Embeddings of pictures: losses that shape them without labels, and signs that they have collapsed."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np


def nt_xent(projections: Any, temperature: float) -> Any:
    """Get the normalised temperature-scaled cross-entropy: equation 1 of Chen et al. 2020, over all 2n views.

    Args:
        projections: (2n, features); rows k and n + k are the views of picture k.
        temperature: Of the softmax.
    """
    ops = keras.ops
    z = ops.normalize(ops.cast(projections, "float32"), axis=-1)
    count = ops.shape(z)[0]
    similarity = ops.matmul(z, ops.transpose(z)) / temperature
    similarity = similarity - 1e9 * ops.eye(count)  # a view is no contrast to itself
    partner = ops.mod(ops.arange(count) + count // 2, count)
    return ops.mean(keras.losses.sparse_categorical_crossentropy(partner, similarity, from_logits=True))


def vicreg_loss(embeddings: Any, invariance: float, variance: float, covariance: float) -> Any:
    """Get the loss of VICReg: equations 1 to 6 of Bardes et al. 2022, but for the invariance, equation 5.

    That is divided by the number of features too, as in the authors' code: the mean of the squared differences.

    Args:
        embeddings: (2n, features); rows k and n + k are the views of picture k.
        invariance: Weight of the squared difference between the views, its mean over pictures and features.
        variance: Weight of the hinge on deviations below 1.
        covariance: Weight of the squared covariances off the diagonal.
    """
    ops = keras.ops
    first, second = ops.split(ops.cast(embeddings, "float32"), 2, axis=0)
    total = invariance * ops.mean(ops.sum(ops.square(first - second), axis=1)) / first.shape[1]
    for view in (first, second):
        count = ops.cast(ops.shape(view)[0], "float32")
        centred = view - ops.mean(view, axis=0, keepdims=True)
        covariances = ops.matmul(ops.transpose(centred), centred) / (count - 1)
        spread = ops.diagonal(covariances)
        deviation = ops.sqrt(spread + 1e-4)
        total = total + variance * ops.mean(ops.relu(1 - deviation))
        total = total + covariance * (ops.sum(ops.square(covariances)) - ops.sum(ops.square(spread))) / view.shape[1]
    return total


def spread(features: np.ndarray) -> float:
    """Get how far features point in different directions: 0 if in one, 1 if evenly in all.

    The standard deviation of each channel of features of unit length, times the root of their number (Chen and He 2021,
    https://arxiv.org/abs/2011.10566, section 4.1): near 0 after a collapse.

    Args:
        features: (pictures, channels).
    """
    lengths = np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return float((features / lengths).std(axis=0).mean() * np.sqrt(features.shape[1]))


def effective_rank(features: np.ndarray) -> float:
    """Get how many directions features use: the exponential of the entropy of their centred singular values.

    Roy and Vetterli 2007; as a judge of pretraining without labels Garrido et al. 2023, https://arxiv.org/abs/2210.02885.

    Args:
        features: (pictures, channels).
    """
    values = np.linalg.svd(features - features.mean(axis=0), compute_uv=False)
    shares = values / max(values.sum(), 1e-12) + 1e-12
    return float(np.exp(-(shares * np.log(shares)).sum()))
