"""Detection: what is in a picture and where, by a head on the feature map of a backbone.

One head, no anchors: each place of the map says for each class whether the middle of an object lies there (as in
CenterNet: Zhou and others 2019, https://arxiv.org/abs/1904.07850) and how far the object's four sides are away (as in
FCOS: Tian and others 2019, https://arxiv.org/abs/1904.01355). The model is one of `build_classifier`, so `train_head`,
`unfreeze_top` and `fine_tune` do with it what they do with a classifier, audit included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO

import keras
import numpy as np

from tlkeras.arguments import real_number, whole_number
from tlkeras.backbones import Backbone
from tlkeras.engines import KerasEngine
from tlkeras.freezing import transfer_of
from tlkeras.heads import build_classifier
from tlkeras.pipelines import check_range
from tlkeras.predictions import to_answers


@dataclass(frozen=True)
class Detections:
    """What a detector found in one picture, the surest first.

    Attributes:
        boxes: float32 (objects, 4): left, top, right, bottom in pixels.
        labels: int64 (objects,), classes.
        scores: float32 (objects,), in (0, 1); no probabilities, but they rank.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def build_detector(
    backbone: Backbone, num_classes: int, *, stage: str | int | None = None, width: int = 64
) -> keras.Model:
    """Get a model from raw pictures to maps of what is where: a copy of the backbone, frozen, and a detection head.

    The head is a 3 x 3 convolution with group norm and a ReLU, and a 1 x 1 convolution. At each place of the map it can
    name one object of a class, and of two neighbouring places `detect` keeps the surer one: objects of a class should
    be two places apart, and about a place wide or more.

    Args:
        backbone: From `load_backbone`.
        num_classes: Kinds of objects.
        stage: Where the head sits, as in `build_classifier`. Default: the last stage with a place for each 16 pixels
            or so of the picture's side; the first if there is none.
        width: Channels of the first convolution.

    Returns:
        A `keras.Model`, not compiled, from (batch, height, width, 3) in [0, 255] to (batch, rows, columns,
        num_classes + 4): for each class a logit that an object's middle lies here, and four numbers whose softplus is
        the distance to the left, top, right and bottom side, as shares of the picture. `detect` reads it.

    Raises:
        ValueError: If a number is below 1, or the stage is unknown.
        TypeError: If `backbone` did not come from `load_backbone`.
    """
    if not isinstance(backbone, Backbone):
        raise TypeError(f"backbone comes from load_backbone(name), got {type(backbone).__name__}.")
    num_classes, width = whole_number("num_classes", num_classes, 1), whole_number("width", width, 1)
    if stage is None:
        sides = {name: backbone.model.get_layer(name).output.shape[1] for name in backbone.stages}
        fine = [name for name, side in sides.items() if 24 * side > backbone.image_size]  # a stride of 16, not of 32
        stage = fine[-1] if fine else backbone.stages[0]
    layers = keras.layers
    # A logit of -2 says "rarely a middle", and softplus(-2) is an eighth of the picture: a start near the truth.
    last = layers.Conv2D(num_classes + 4, 1, bias_initializer=keras.initializers.Constant(-2.0), dtype="float32",
                         name="objects")  # fmt: skip
    around = [
        layers.Conv2D(width, 3, padding="same", use_bias=False, name="around"),
        layers.GroupNormalization(math.gcd(8, width), name="around_norm"),  # maps differ in scale from net to net
        layers.ReLU(name="around_relu"),
    ]
    head = keras.Sequential([*around, last])
    return build_classifier(backbone, num_classes, task="detection", head=head, stage=stage)


def encode_objects(model: keras.Model, boxes: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> np.ndarray:
    """Get the maps that a detector should give for pictures whose objects are known: what it is trained on.

    Args:
        model: From `build_detector`.
        boxes: For each picture (objects, 4): left, top, right, bottom in pixels of the size that the model takes.
        labels: For each picture (objects,), whole numbers from 0.

    Returns:
        float32 (pictures, rows, columns, classes + 4). Of each class 1 at the place of an object's middle, less around
        it (a Gaussian a sixth of the object wide); then, at the middles, the distances to the sides from the centre of
        the place, at least 0. Where two objects share a place, the smaller one's are kept, for both classes.

    Raises:
        ValueError: If a box is empty or leaves the picture, a label is no class, or their numbers differ.
    """
    _, rows, columns, channels = _detector(model).output_shape
    size, num_classes = np.array(model.input_shape[2:0:-1]), channels - 4  # width, height
    if len(boxes) != len(labels):
        raise ValueError(f"There are boxes of {len(boxes)} pictures and labels of {len(labels)}.")
    maps = np.zeros((len(boxes), rows, columns, channels), np.float32)
    y, x = np.mgrid[:rows, :columns]
    for k, (some, names) in enumerate(zip(boxes, labels, strict=True)):
        some, given = np.asarray(some, np.float64), np.asarray(names)
        if some.size and some.shape != (len(some), 4):
            raise ValueError(f"Picture {k}: boxes are (objects, 4), left, top, right and bottom; got {some.shape}.")
        some = some.reshape(-1, 4)
        names = given.astype(np.int64)
        low, high = some[:, :2] / size, some[:, 2:] / size  # as shares of the picture
        if len(some) != len(names) or np.any((names != given) | (names < 0) | (names >= num_classes)):
            raise ValueError(
                f"Picture {k}: each of {len(some)} boxes needs a label from 0 to {num_classes - 1}, got {given}."
            )
        if not np.all((low >= 0) & (low < high) & (high <= 1)):
            raise ValueError(
                f"Picture {k}: boxes are left, top, right, bottom in pixels within {size[0]} x {size[1]}, got {some}."
            )
        for j in np.argsort(-np.prod(high - low, axis=1)):
            column, row = np.minimum((low[j] + high[j]) / 2 * (columns, rows), (columns - 1, rows - 1)).astype(int)
            wide, tall = np.maximum((high[j] - low[j]) * (columns, rows) / 6, 0.1)
            near = np.exp(-((x - column) ** 2) / (2 * wide**2) - (y - row) ** 2 / (2 * tall**2))
            maps[k, ..., names[j]] = np.maximum(maps[k, ..., names[j]], near)
            here = (column + 0.5) / columns, (row + 0.5) / rows
            maps[k, row, column, -4:] = np.maximum([*(here - low[j]), *(high[j] - here)], 0)
    return maps


def detect(model: keras.Model, images: np.ndarray, *, threshold: float = 0.3, most: int = 20) -> list[Detections]:
    """Find objects in pictures.

    Args:
        model: From `build_detector`, trained.
        images: (pictures, height, width, 3) in [0, 255].
        threshold: The least score that counts, in (0, 1); for `average_precision`, which looks at all, 0.05 or less.
        most: Objects of a picture, at most.

    Returns:
        What was found in each picture. A place counts if no neighbour has a higher score for the same class.

    Raises:
        ValueError: If the model is no detector, the pictures do not fit it, or a number is not as said.
    """
    from scipy.ndimage import maximum_filter

    if np.shape(images)[1:] != _detector(model).input_shape[1:]:
        raise ValueError(f"The model takes pictures of shape {model.input_shape}, got {np.shape(images)}.")
    threshold, most = real_number("threshold", threshold, "(0, 1)"), whole_number("most", most, 1)
    if not len(images):
        return []
    if np.asarray(images).dtype != np.uint8:  # a dark picture on the disk is no divided one
        check_range(np.asarray(images))
    batches = (images[start : start + 32] for start in range(0, len(images), 32))
    maps = np.concatenate([outputs[0] for outputs in KerasEngine(model).run(batches)])
    logits, answers = maps[..., :-4], to_answers(maps, "detection")
    peaks = logits == maximum_filter(logits, size=(1, 3, 3, 1))  # of the logits: scores near 1 are equal
    scores, sides = np.where(peaks, answers[..., :-4], 0.0), answers[..., -4:]
    size, grid = np.array(model.input_shape[2:0:-1]), np.array(scores.shape[2:0:-1])
    found = []
    for score, side in zip(scores, sides, strict=True):
        best = np.argsort(-score, axis=None, kind="stable")[:most]
        row, column, label = np.unravel_index(best[score.ravel()[best] >= threshold], score.shape)
        here, distance = (np.stack([column, row], axis=1) + 0.5) / grid, side[row, column]
        boxes = np.concatenate([here - distance[:, :2], here + distance[:, 2:]], axis=1).clip(0, 1) * np.tile(size, 2)
        found.append(Detections(boxes.astype(np.float32), label, score[row, column, label].astype(np.float32)))
    return found


def average_precision(
    found: Sequence[Detections], boxes: Sequence[np.ndarray], labels: Sequence[np.ndarray], *, overlap: float = 0.5
) -> float:
    """Get COCO's average precision, by pycocotools: of what was found, how much is right, and how much was missed?

    Args:
        found: From `detect`, with a low threshold.
        boxes: For each picture the true boxes, as in `encode_objects`.
        labels: For each picture their classes.
        overlap: A box is right if its intersection with a true box is at least this share of their union, in (0, 1].

    Returns:
        The mean over the classes that occur of the area under precision by recall, in [0, 1].

    Raises:
        ValueError: If the numbers of pictures or of a picture's boxes and labels differ, a true box has no area, there
            is no object at all, or `overlap` is not as said.
        ImportError: If pycocotools is not installed.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ImportError("average_precision needs pycocotools: pip install pycocotools") from error
    if not len(found) == len(boxes) == len(labels):
        raise ValueError(f"Pictures: {len(found)} looked at, {len(boxes)} with boxes, {len(labels)} with labels.")
    overlap = real_number("overlap", overlap, "(0, 1]")
    for k, (some, names) in enumerate(zip(boxes, labels, strict=True)):
        some = np.asarray(some, np.float64).reshape(-1, 4)
        if len(some) != len(names) or not (some[:, :2] < some[:, 2:]).all():
            raise ValueError(
                f"Picture {k}: it takes a label for each true box, and boxes of left, top, right, bottom; got "
                f"{len(names)} labels and {some.tolist()}."
            )

    def entries(k: int, some: np.ndarray, names: np.ndarray, scores: np.ndarray) -> list[dict]:
        some = np.asarray(some, np.float64).reshape(-1, 4)
        corners = np.concatenate([some[:, :2], some[:, 2:] - some[:, :2]], axis=1).tolist()
        return [
            {"image_id": k + 1, "category_id": int(name) + 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0,
             "score": float(score)}
            for box, name, score in zip(corners, names, scores, strict=True)
        ]  # fmt: skip

    truth = [entry for k, names in enumerate(labels) for entry in entries(k, boxes[k], names, np.ones(len(names)))]
    if not truth:
        raise ValueError("No picture has an object: nothing can be found or missed.")
    guesses = [entry for k, each in enumerate(found) for entry in entries(k, each.boxes, each.labels, each.scores)]
    if not guesses:
        return 0.0
    with redirect_stdout(StringIO()):  # it prints its progress and a table
        coco = COCO()
        coco.dataset = {
            "images": [{"id": k + 1} for k in range(len(labels))],
            "categories": [{"id": k} for k in sorted({entry["category_id"] for entry in truth})],
            "annotations": [{"id": k, **entry} for k, entry in enumerate(truth, start=1)],
            "info": {},
        }
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(guesses), "bbox")
        judge.params.iouThrs = np.array([overlap])
        judge.params.maxDets = [1, 10, max(100, *(len(each.scores) for each in found))]  # COCO stops at 100 a picture
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"][0, :, :, 0, -1]  # by recall and class, objects of all sizes
    return float(precision[:, (precision > -1).any(axis=0)].mean())


def _detector(model: keras.Model) -> keras.Model:
    """The model, if it is a detector."""
    if transfer_of(model).task != "detection":
        raise ValueError(f"This model's task is {model.transfer.task!r}; a detector comes from build_detector().")
    return model
