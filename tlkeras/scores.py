"""Scores: how well features suit labels, without training a classifier on them.

Both rise with better transfer and compare features on one data set; neither is an accuracy. Measure how well they rank
what you care about before you trust them: `benchmarks` prints it.
"""

from __future__ import annotations

import numpy as np


def h_score(features: np.ndarray, labels: np.ndarray) -> float:
    """Get the H-score: the share of the features' variance that the classes explain, summed over directions.

    tr(cov(f)^-1 cov(E[f | y])), Bao and others (2019), https://doi.org/10.1109/ICIP.2019.8803726. With more channels
    than pictures the covariance of the paper cannot be inverted and every data set scores the same; so it is shrunk
    after Ledoit and Wolf, as Ibrahim and others (2021), https://arxiv.org/abs/2110.06893, propose.

    Args:
        features: (pictures, channels).
        labels: Integers, (pictures,).

    Returns:
        A score from 0 to at most the number of classes less one; higher is better. Constant features score 0.

    Raises:
        ValueError: If the features are no matrix of one row a label or not finite, the labels not whole numbers, or
            there is one class only.
    """
    from sklearn.covariance import ledoit_wolf
    from threadpoolctl import threadpool_limits

    features, labels = _checked(features, labels)
    if (features == features[0]).all():  # no variance, so none that classes explain; below, rounding over rounding
        return 0.0
    centred = features - features.mean(axis=0)
    with threadpool_limits(1, user_api="blas"):  # on a busy machine several threads wait for one another
        covariance, shrinkage = ledoit_wolf(centred, assume_centered=True)
    classes, position = np.unique(labels, return_inverse=True)
    means = np.stack([centred[position == k].mean(axis=0) for k in range(len(classes))])
    weights = np.bincount(position) / len(position)
    # tr(C^-1 M' W M), without the (channels, channels) matrix between.
    with threadpool_limits(1, user_api="blas"):
        # Unshrunk, as of two points, it may have no inverse; the means lie in its span, where least squares has one.
        solve = np.linalg.solve if shrinkage > 1e-9 else lambda *pair: np.linalg.lstsq(*pair, rcond=None)[0]
        solved = solve(covariance, means.T)  # (channels, classes)
    return float((1 - shrinkage) * np.sum(weights * np.einsum("kc,ck->k", means, solved)))


def log_me(features: np.ndarray, labels: np.ndarray) -> float:
    """Get LogME: the logarithm of the evidence for a linear model of the labels on these features, a picture.

    You and others (2021), https://arxiv.org/abs/2102.11005: for each class, the 0/1 labels are drawn from a linear
    model with Gaussian weights and noise, whose two precisions are chosen to make the labels likeliest; the mean over
    classes is taken.

    Args:
        features: (pictures, channels).
        labels: Integers, (pictures,).

    Returns:
        A score without bounds; higher is better. Features that are all 0 get the evidence of the noise alone.

    Raises:
        ValueError: If the features are no matrix of one row a label or not finite, the labels not whole numbers, or
            there is one class only.
    """
    from threadpoolctl import threadpool_limits

    features, labels = _checked(features, labels)
    with threadpool_limits(1, user_api="blas"):
        left, singular, _ = np.linalg.svd(features, full_matrices=False)
    squares = singular**2
    return float(np.mean([_evidence(left, squares, features.shape, labels == k) for k in np.unique(labels)]))


def _evidence(left: np.ndarray, squares: np.ndarray, shape: tuple[int, int], target: np.ndarray) -> float:
    """The log evidence of one 0/1 target a picture, maximised over the two precisions by the paper's fixed point."""
    num_pictures, num_channels = shape
    target = target.astype(np.float64)
    if not squares.any():  # no weight reaches the target, so the weights' precision falls out
        return -0.5 * (np.log(2 * np.pi * np.mean(target**2)) + 1)
    projected = (left.T @ target) ** 2  # the target's energy along each direction
    outside = max(target @ target - projected.sum(), 0.0)  # what no linear model can reach
    alpha = beta = 1.0  # precision of the weights, of the noise
    for _ in range(200):
        ratio = alpha / beta
        gamma = np.sum(squares / (ratio + squares))
        weights = np.sum(squares * projected / (ratio + squares) ** 2)
        residual = np.sum(projected * ratio**2 / (ratio + squares) ** 2) + outside
        alpha, beta = gamma / (weights + 1e-12), (num_pictures - gamma) / (residual + 1e-12)
        if abs(alpha / beta - ratio) <= 1e-6 * ratio:
            break
    ratio = alpha / beta
    weights = np.sum(squares * projected / (ratio + squares) ** 2)
    residual = np.sum(projected * ratio**2 / (ratio + squares) ** 2) + outside
    log_determinant = np.sum(np.log(alpha + beta * squares)) + (num_channels - len(squares)) * np.log(alpha)
    evidence = (
        num_channels / 2 * np.log(alpha)
        + num_pictures / 2 * np.log(beta / (2 * np.pi))
        - beta / 2 * residual
        - alpha / 2 * weights
        - log_determinant / 2
    )
    return evidence / num_pictures


def _checked(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    features, labels = np.asarray(features, np.float64), np.asarray(labels)
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(f"Expected (pictures, channels) and a label each, got {features.shape} and {labels.shape}.")
    if labels.dtype.kind not in "iub":
        raise ValueError(
            f"A score compares classes, whole numbers; got {labels.dtype} labels: {labels[:4]} ... For classes with "
            "names take their numbers: np.unique(labels, return_inverse=True)[1]."
        )
    if not np.isfinite(features).all():
        raise ValueError("The features hold NaN or infinite values: does the network overflow, or was divided by 0?")
    if len(np.unique(labels)) < 2:
        raise ValueError("A score compares classes; these labels hold one only.")
    return features, labels
