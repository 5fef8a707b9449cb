"""Colours as colorization predicts them: CIE Lab, its plane of hues cut into bins.

After Zhang, Isola and Efros 2016, "Colorful Image Colorization", https://arxiv.org/abs/1603.08511: a colour is a class,
not a number, because the mean of red and green is the brown that nothing has.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tlkeras.arguments import real_number

# sRGB under D65 to XYZ over the white point, and XYZ to Lab (CIE 15:2004); held against scikit-image by a test.
_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
_WHITE = np.array([0.95047, 1.0, 1.08883])
_TO_XYZ = (_XYZ / _WHITE[:, None]).T.astype("float32")
_TO_LAB = np.array([[0, 500, 0], [116, -500, 200], [0, 0, -200]], "float32")


def rgb_to_lab(images: Any) -> Any:
    """Turn sRGB in [0, 255], (..., 3), into Lab: lightness in [0, 100], a (green to red) and b (blue to yellow)."""
    ops = keras.ops
    x = ops.cast(images, "float32") / 255
    linear = ops.where(x > 0.04045, ops.power((ops.maximum(x, 0.04045) + 0.055) / 1.055, 2.4), x / 12.92)
    xyz = ops.matmul(linear, ops.convert_to_tensor(_TO_XYZ))
    root = ops.where(xyz > 0.008856, ops.power(ops.maximum(xyz, 0.008856), 1 / 3), 7.787 * xyz + 16 / 116)
    return ops.matmul(root, ops.convert_to_tensor(_TO_LAB)) - ops.convert_to_tensor(np.float32([16, 0, 0]))


def lab_to_rgb(lab: np.ndarray) -> np.ndarray:
    """Turn Lab, (..., 3), into sRGB in [0, 255], float32; colours that no screen has are clipped."""
    root = (np.asarray(lab, "float64") + [16, 0, 0]) @ np.linalg.inv(_TO_LAB.astype("float64"))
    xyz = np.where(root > 0.206893, root**3, (root - 16 / 116) / 7.787)
    linear = np.clip(xyz @ np.linalg.inv(_TO_XYZ.astype("float64")), 0, 1)
    x = np.where(linear > 0.0031308, 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055, 12.92 * linear)
    return np.float32(255 * x)


def hue_bins(grid: int = 10) -> np.ndarray:
    """Get the centres of those squares of the ab plane that some sRGB colour falls into, (bins, 2).

    Args:
        grid: Side of a square in units of a and b; 10 gives 260 (the paper, which adds neighbours, 313), 20 gives 74.
    """
    levels = np.linspace(0, 255, 52)
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
    ab = keras.ops.convert_to_numpy(rgb_to_lab(colours))[:, 1:]
    return np.unique(np.round(ab / grid), axis=0).astype("float32") * grid


def nearest_bin(ab: Any, bins: np.ndarray) -> Any:
    """Get the number of the nearest bin of each colour: (..., 2) to int32 (...)."""
    ops = keras.ops
    # |x - c|^2 without |x|^2, which is the same for all bins: one product of matrices.
    distance = ops.convert_to_tensor((bins**2).sum(axis=1)) - 2 * ops.matmul(ab, ops.convert_to_tensor(bins.T))
    return ops.cast(ops.argmin(distance, axis=-1), "int32")


def rebalancing(frequency: np.ndarray, share: float) -> np.ndarray:
    """Get the weight of each colour, 1 on average over the pictures: equation 4 of Zhang et al. 2016, unsmoothed.

    Args:
        frequency: Of each bin, sums to 1.
        share: Of the frequency in the mixture with a uniform one.
    """
    real_number("rebalance", share, "[0, 1)")
    weights = 1 / (share * frequency + (1 - share) / len(frequency))
    return (weights / (frequency @ weights)).astype("float32")
