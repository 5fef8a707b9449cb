"""Hand-made features: what one had before networks learnt them. The contrast for every lesson on CNN codes."""

from __future__ import annotations

import numpy as np


def hog_features(images: np.ndarray, *, cells: int = 8) -> np.ndarray:
    """Get histograms of oriented gradients (Dalal and Triggs, 2005, https://doi.org/10.1109/CVPR.2005.177).

    Nine directions in each of `cells` x `cells` squares of the picture, normalised over blocks of 2 x 2.

    Args:
        images: (pictures, side, side, 3) in [0, 255], at least 4 pixels a cell; pixels that make no whole cell are left
            out, at the right and at the bottom.
        cells: Squares along each side.

    Returns:
        float32 (pictures, (cells - 1)^2 * 36).

    Raises:
        ValueError: If these are no square pictures, or they are too small for so many cells.
        ImportError: If scikit-image is not installed.
    """
    try:
        from skimage.feature import hog
    except ImportError as error:
        raise ImportError("hog_features needs scikit-image: pip install scikit-image") from error
    images = _checked(images)
    if images.shape[1] != images.shape[2]:
        raise ValueError(f"It takes square pictures, got {images.shape[1:3]}: resize or crop them first.")
    side = images.shape[1] // cells
    if side < 4:
        raise ValueError(f"{cells} cells need {4 * cells} pixels along each side, got pictures {images.shape[1:3]}.")
    size = side * cells
    options = {"orientations": 9, "pixels_per_cell": (side, side), "cells_per_block": (2, 2), "channel_axis": -1}
    return np.stack([hog(image[:size, :size] / 255, **options) for image in images]).astype(np.float32)


def colour_histogram(images: np.ndarray, *, bins: int = 6) -> np.ndarray:
    """Get the share of a picture's pixels in each box of the RGB cube.

    Args:
        images: (pictures, height, width, 3) in [0, 255].
        bins: Boxes along each of the three axes.

    Returns:
        float32 (pictures, bins^3); each row adds up to 1.

    Raises:
        ValueError: If these are no pictures.

    Example:
    >>> red = np.full((1, 4, 4, 3), [255, 0, 0])
    >>> colour_histogram(red, bins=2)
    array([[0., 0., 0., 0., 1., 0., 0., 0.]], dtype=float32)
    """
    images = _checked(images)
    boxes = np.minimum(images.astype(np.float32) * bins / 256, bins - 1).astype(int)
    place = (boxes[..., 0] * bins + boxes[..., 1]) * bins + boxes[..., 2]  # (pictures, height, width)
    return np.stack([np.bincount(row.ravel(), minlength=bins**3) / row.size for row in place]).astype(np.float32)


def _checked(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"Expected pictures (pictures, height, width, 3) in [0, 255], got {images.shape}.")
    return images
