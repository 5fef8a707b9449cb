"""Where a classifier looks: Grad-CAM, on whole models, fine-tuned or loaded from a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from tlkeras.freezing import transfer_of
from tlkeras.pipelines import check_range

if TYPE_CHECKING:
    from tlkeras.predictions import Predictions

BATCH_SIZE = 32


def grad_cam(
    model: keras.Model,
    images: np.ndarray,
    classes: int | Sequence[int] | None = None,
    *,
    against: int | None = None,
    stage: str | int | None = None,
) -> np.ndarray:
    """Get, for each picture, where the feature map of a stage speaks for a class.

    The gradient of the class's logit with respect to the map says how much each channel speaks for the class; the
    channels, weighted by its mean over the places and summed, give the heat, of which only what is above 0 counts
    (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391). It shows where channels were active that speak for a
    class. It does not prove that the network would decide otherwise without that place, and a network that knows
    nothing draws maps too (Adebayo et al. 2018, https://arxiv.org/abs/1810.03292; lesson 12 measures that).

    Args:
        model: Of `build_classifier`, trained or not, or `load_artifact(folder).model`; frozen or unfrozen.
        images: (n, height, width, channels) in [0, 255], of the model's size.
        classes: The class to speak for, or one a picture; by default the most probable of each. Of a model with one
            logit: 0 or 1.
        against: A class whose logit is subtracted, to ask what tells the two apart.
        stage: One of `model.transfer.stages`, by name or by index; by default the last, whose map is coarse. An earlier
            one is finer, and knows less of the class.

    Returns:
        float32 (n, height, width) in [0, 1]: 1 at the hottest place of each picture, 0 all over where nothing speaks
        for the class.

    Raises:
        ValueError: If the model is no classifier, the stage has no map of places, images or classes do not fit, the
            pictures look as if they had been divided by 255, or the network gives NaN.

    Example:
    >>> import tlkeras as tl
    >>> model = tl.build_classifier(tl.small_backbone(32), 3)
    >>> images, _ = tl.make_fractals(2, 1, image_size=32)
    >>> tl.grad_cam(model, images).shape
    (2, 32, 32)
    """
    transfer = transfer_of(model)
    if transfer.task not in ("classification", "binary", "multi-label"):
        raise ValueError(f"Grad-CAM asks what speaks for a class; this model does {transfer.task}.")
    stages = transfer.stages
    if isinstance(stage, Integral) and -len(stages) <= stage < len(stages):
        stage = stages[stage]
    stage = stages[-1] if stage is None else stage
    if stage not in stages:
        raise ValueError(f"The model has no stage {stage!r}; it has {', '.join(stages)}.")
    cut = model.get_layer(stage).output
    if len(cut.shape) != 4:
        raise ValueError(f"{stage} gives no map of places, its output is {cut.shape[1:]}: take a stage before it.")
    images, shape = np.asarray(images), model.input_shape[1:]
    if images.shape[1:] != shape or not len(images):
        raise ValueError(f"The model takes pictures (n, {', '.join(map(str, shape))}), got {images.shape}.")
    if images.dtype != np.uint8:  # as in `predict`: a dark picture on the disk is no divided one
        check_range(images)
    count = 2 if transfer.task == "binary" else model.output_shape[-1]
    if np.ndim(against):
        raise ValueError(f"against is one class for all pictures, got {against!r}.")
    if classes is not None and np.shape(classes) not in ((), (len(images),)):
        raise ValueError(f"{len(images)} pictures, but classes {np.shape(classes)}: give one, or one a picture.")
    for number in (*np.ravel([] if classes is None else classes), *([] if against is None else [against])):
        if not isinstance(number, Integral) or not 0 <= number < count:
            raise ValueError(f"There is no class {number}: the model has {count}, numbered from 0.")
    lower, upper = keras.Model(model.inputs[0], cut), keras.Model(cut, model.outputs[0])

    def logits_of(maps: Any) -> Any:
        logits = keras.ops.cast(upper(maps, training=False), "float32")
        return keras.ops.concatenate([-logits, logits], axis=-1) if transfer.task == "binary" else logits

    heat, signs = [], np.eye(count, dtype="float32")
    for start in range(0, len(images), BATCH_SIZE):
        rows = slice(start, start + BATCH_SIZE)
        maps = lower(keras.ops.convert_to_tensor(images[rows].astype("float32")), training=False)
        if classes is None:
            wanted = keras.ops.convert_to_numpy(logits_of(maps)).argmax(axis=1)
        else:
            wanted = np.broadcast_to(classes, len(images))[rows]
        weights = keras.ops.convert_to_tensor(signs[wanted] - (0 if against is None else signs[against]))
        slopes = _gradient(lambda maps, weights=weights: keras.ops.sum(weights * logits_of(maps)), maps)
        speaks = keras.ops.mean(slopes, axis=(1, 2), keepdims=True) * maps
        speaks = keras.ops.relu(keras.ops.sum(keras.ops.cast(speaks, "float32"), axis=-1, keepdims=True))
        heat.append(keras.ops.convert_to_numpy(keras.ops.image.resize(speaks, shape[:2]))[..., 0])
    heat = np.concatenate(heat)
    if not np.isfinite(heat).all():
        raise ValueError("The network gives NaN or infinity: its training diverged. Train again at a lower rate.")
    hottest = heat.max(axis=(1, 2), keepdims=True)
    return np.divide(heat, hottest, out=np.zeros_like(heat), where=hottest > 0)


def overlay_heat(images: np.ndarray, heat: np.ndarray, *, strength: float = 0.7) -> np.ndarray:
    """Get pictures in grey with heat laid over them, violet to yellow: on a red flower red heat would not be seen.

    Args:
        images: (n, height, width, 3) or (n, height, width, 1) in [0, 255].
        heat: (n, height, width) in [0, 1], of `grad_cam`.
        strength: Share of the colour at the hottest place, in [0, 1].

    Returns:
        uint8 (n, height, width, 3).

    Raises:
        ValueError: If heat and pictures do not fit.
    """
    import matplotlib

    images, heat = np.asarray(images), np.asarray(heat, "float32")
    if images.shape[:3] != heat.shape or images.ndim != 4:
        raise ValueError(f"Heat {heat.shape} does not lie on pictures {images.shape}.")
    colours = matplotlib.colormaps["plasma"](heat, bytes=True)[..., :3]
    share, grey = strength * heat[..., None], images.mean(axis=-1, keepdims=True, dtype="float32")
    return np.rint((1 - share) * grey + share * colours).clip(0, 255).astype(np.uint8)


def write_heat(
    folder: Path, model: keras.Model, images: Sequence[np.ndarray], predictions: Predictions, before: int = 0
) -> list[Path]:
    """Write a PNG for each picture, with the heat of the class that was predicted; get the files, in order.

    Args:
        folder: Where to; it must not exist, unless `before` pictures lie in it. Files are named after the picture and
            its number.
        model: A classifier.
        images: Pictures (height, width, 3) in [0, 255], of the model's size.
        predictions: The model's, with `paths`, in the same order.
        before: How many pictures have their number already.
    """
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=before > 0)
    files, pictures = [], np.stack(images)
    heat = overlay_heat(pictures, grad_cam(model, pictures, predictions.predicted))
    for number, (path, picture) in enumerate(zip(predictions.paths, heat, strict=True), before + 1):
        stem = os.fsencode(Path(path).stem)[:200].decode(errors="ignore")  # names end at 255 bytes
        files.append(folder / f"{number:03}_{stem}.png")
        Image.fromarray(picture).save(files[-1])
    return files


def _gradient(score: Callable[[Any], Any], maps: Any) -> Any:
    """The slope of a number with respect to the maps that it is made of."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(maps)
            value = score(maps)
        return tape.gradient(value, maps)
    if backend == "jax":
        import jax

        return jax.grad(score)(maps)
    if backend == "torch":
        import torch

        with torch.enable_grad():
            maps = maps.detach().requires_grad_(True)
            return torch.autograd.grad(score(maps), maps)[0]
    raise RuntimeError(f"The Keras backend {backend!r} computes no gradients: set KERAS_BACKEND=tensorflow.")
