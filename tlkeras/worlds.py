"""The world of a lesson, and its near pictures: computed ones without a network, photographs with one."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import keras
import numpy as np

from tlkeras.fractals import make_fractals
from tlkeras.loaders import load_folder
from tlkeras.tfds import load_tfds

WORLDS = ("embedded", "imagenet")


def start_lesson() -> str:
    """Say which pretrained weights and pictures a lesson uses, and see to it that its figures come out again.

    The world is "embedded", or "imagenet" where there is a GPU; the environment variable TLKERAS_WORLD overrules. All
    random numbers start from the seed 0 (dropout draws its own when a model is built). In the embedded world
    TensorFlow computes each operation in one thread, unless TF_NUM_INTRAOP_THREADS says otherwise, and does not
    rewrite its graphs: the networks there are so small and learn for so few steps that threads wait for each other,
    and that rewriting a graph takes longer than it saves. Call it before the first network.

    Returns:
        "embedded" or "imagenet".

    Raises:
        ValueError: If TLKERAS_WORLD is neither of the two.
    """
    world = os.environ.get("TLKERAS_WORLD") or ("imagenet" if _has_gpu() else "embedded")
    if world not in WORLDS:
        raise ValueError(f"TLKERAS_WORLD={world!r} is neither of {WORLDS}.")
    if world == "embedded" and keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
        if "TF_NUM_INTRAOP_THREADS" not in os.environ:
            with contextlib.suppress(RuntimeError):  # too late: a network was there before
                tf.config.threading.set_intra_op_parallelism_threads(1)
    keras.utils.set_random_seed(0)
    print(f"World: {world}. The environment variable TLKERAS_WORLD=embedded or =imagenet chooses the other.")
    return world


def _has_gpu() -> bool:
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return bool(tf.config.list_physical_devices("GPU"))  # does not start the devices, as Keras's list would
    return "gpu" in str(keras.distribution.list_devices())


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
    data = (load_folder if Path(source).is_dir() else load_tfds)(source, image_size=image_size)
    labels = data.labels["train"]
    rows = np.concatenate([np.flatnonzero(labels == k)[:per_class] for k in range(min(num_classes, data.num_classes))])
    return data.pixels.read(data.index["train"][rows]), labels[rows]
