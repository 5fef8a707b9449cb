"""Near pictures for a lesson: computed ones offline, photographs online."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from tlkeras.fractals import make_fractals
from tlkeras.loaders import load_folder
from tlkeras.startup import WORLDS
from tlkeras.tfds import load_tfds


def load_near(
    world: str, *, num_classes: int = 10, per_class: int = 50, image_size: int = 96
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures that resemble what the pretrained network was trained on.

    In the world "embedded" these are fractals of systems that the embedded weights have not seen. In the world
    "imagenet" they are the first photographs of each class of the set that the environment variable
    TLKERAS_DATA names: a folder of class folders, or a set of TensorFlow Datasets ("tf_flowers" if unset).

    Args:
        world: "embedded" or "imagenet".
        num_classes: The most classes to take; a set of photographs may have fewer.
        per_class: The most pictures to take of each.
        image_size: Side of the pictures in pixels.

    Returns:
        Pictures, (pictures, image_size, image_size, 3) in [0, 255], and their classes, (pictures,), sorted by class.

    Raises:
        ValueError: If the world is neither of the two.

    Examples:
        >>> images, labels = load_near("embedded", num_classes=2, per_class=3, image_size=32)
        >>> images.shape, labels.tolist()
        ((6, 32, 32, 3), [0, 0, 0, 1, 1, 1])
    """
    if world == "embedded":
        return make_fractals(num_classes, per_class, image_size=image_size)
    if world not in WORLDS:
        raise ValueError(f"world={world!r} is neither of {WORLDS}.")
    source = os.environ.get("TLKERAS_DATA", "tf_flowers")
    data = (load_folder if Path(source).expanduser().is_dir() else load_tfds)(source, image_size=image_size)
    labels = data.labels["train"]
    rows = np.concatenate([np.flatnonzero(labels == k)[:per_class] for k in range(min(num_classes, data.num_classes))])
    return data.pixels.read(data.index["train"][rows]), labels[rows]
