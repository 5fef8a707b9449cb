"""Pretraining: make a backbone useful by a task that needs no labels, and see it become so."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np

from tlkeras.arguments import real_number, whole_number
from tlkeras.backbones import Backbone
from tlkeras.checks import Checks, RunFolder, run_identity
from tlkeras.optimizers import warmup_cosine
from tlkeras.pipelines import without_autotuning
from tlkeras.pretexts import Pretext
from tlkeras.progress import EpochLines

log = logging.getLogger("tlkeras")

COLLAPSED = 0.1  # spread below which features say the same of every picture


@dataclass(frozen=True)
class Pretraining:
    """How a backbone is pretrained, apart from the task.

    Attributes:
        steps: Batches in all.
        batch_size: Pictures taken from the set for one; a contrastive task sees each twice.
        learning_rate: Peak, for AdamW with a warm-up of a tenth and a cosine to 0.
        weight_decay: Of AdamW; scales, shifts and biases are left out.
        checks: How many times the features are looked at, evenly over the steps, besides before the first.
        seed: Of the order, the views and the probe's division of `judge`; the weights that it starts from are given.
        folder: Where every check saves the run, so that the same call goes on after a kill; None saves nothing.
        verbose: 0 is silent, 1 shows a bar over the checks, 2 prints a line a check.
    """

    steps: int = 1000
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    checks: int = 5
    seed: int = 0
    folder: str | Path | None = None
    verbose: int = 1

    def __post_init__(self):
        """Refuse what cannot be run; numbers of NumPy become Python's, which JSON and TensorFlow take."""
        for name, least in (("steps", 1), ("batch_size", 2), ("checks", 1), ("seed", None)):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least))
        for name, interval in (("learning_rate", "(0, inf)"), ("weight_decay", "[0, inf)")):
            object.__setattr__(self, name, real_number(name, getattr(self, name), interval))
        if self.steps % self.checks:
            raise ValueError(f"steps={self.steps} cannot be divided into {self.checks} checks: change one of them.")


@dataclass(frozen=True)
class Pretrained:
    """What pretraining made.

    Attributes:
        backbone: The backbone that was given, with other weights; `weights` says by which task.
        model: Backbone and the task's head: reconstructions, colours, projections.
        task: As it was prepared.
        rows: A dictionary a check, the state before the first step included: step, loss (mean since the check before),
            spread and rank of the features, spread of the embeddings where the task makes some, accuracy of a probe on
            `judge`, seconds.
    """

    backbone: Backbone
    model: keras.Model = field(repr=False)
    task: Pretext
    rows: list[dict]

    @property
    def collapsed(self) -> bool:
        """Whether features or embeddings say the same of all pictures: their spread is below 0.1.

        After few steps a deep network with batch norm looks the same, whatever it has learnt: it is looked at as it
        predicts, by averages of its maps, which lag behind weights that move fast. More steps tell.
        """
        last = self.rows[-1]
        return min(last["spread"], last.get("embedding_spread", 1.0)) < COLLAPSED


def pretrain(
    backbone: Backbone,
    images: np.ndarray,
    task: Pretext,
    *,
    judge: tuple[np.ndarray, np.ndarray] | None = None,
    settings: Pretraining | None = None,
) -> Pretrained:
    """Train a backbone on pictures without labels, by a task that finds its answers in them.

    The loss of such a task says little of what the features are worth, so labelled pictures, `judge`, may be given:
    half of each class teaches a linear probe at every check, the other half judges it. They are not trained on. Checks
    see the network as it predicts, so after the first steps of a deep one, whose batch-norm averages lag, spread and
    accuracy say little. A training that diverges stops with a warning and a row of NaN: its backbone is spoilt, and
    what `folder` holds is the last check before.

    Args:
        backbone: From `load_backbone`, with random weights or any others, for RGB pictures; all of it is trained, in
            place.
        images: (pictures, height, width, 3) in [0, 255], of the backbone's size.
        task: From `pretexts`, such as `SimCLR()`.
        judge: Labelled pictures of the same size and their labels, whole numbers from 0: two classes or more, at least
            four pictures of each.
        settings: Everything else.

    Returns:
        The backbone, the model, and how the features became what they are.

    Raises:
        ValueError: If the task is none, the pictures or those of `judge` do not fit the backbone, are not raw or are
            fewer than a batch, if part of the backbone is frozen or it takes grey pictures, or `folder` holds another
            run, is damaged or no folder.

    Example:
    >>> import tlkeras as tl
    >>> images, labels = tl.make_fractals(4, 8, image_size=32)
    >>> backbone = tl.small_backbone(32)
    >>> settings = tl.Pretraining(steps=2, batch_size=8, checks=1, verbose=0)
    >>> done = tl.pretrain(backbone, images, tl.Rotation(), settings=settings)
    >>> done.backbone.weights, [row["step"] for row in done.rows]
    ('pretrained by Rotation', [0, 2])
    """
    settings = settings or Pretraining()
    if not isinstance(task, Pretext):
        raise ValueError(f"task is an object such as SimCLR(), got {task!r}.")
    images = _checked(backbone, images, settings)
    if judge is not None:
        if not isinstance(judge, tuple | list) or len(judge) != 2:
            raise ValueError(f"judge is a pair (pictures, labels), got {type(judge).__name__}.")
        pictures, labels = judge
        judge = split_in_half(_fitting(backbone, pictures, "judge"), labels, settings.seed)
    targets = task.prepare(images)
    model = task.build(backbone)
    for layer in backbone.model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9  # Keras's 0.99 and 0.999 lag far behind the weights of a training of minutes
    schedule = warmup_cosine(settings.learning_rate, settings.steps, 0.1)
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=settings.weight_decay, clipnorm=5.0)
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    model.compile(optimizer, _BatchLoss(task.loss), jit_compile=False)
    model.optimizer.build(model.trainable_variables)  # under float16 Keras has put one around ours that scales the loss
    every = settings.steps // settings.checks
    checks, folder = Checks(backbone, model, task, every=every, images=images, judge=judge), None
    if settings.folder is not None:
        halves = judge and [array for half in judge for array in half]
        arrays = {"pictures": [images], "targets": [targets], "judge": halves}
        folder = RunFolder(settings.folder, run_identity(backbone, model, task, settings, arrays))
    checks.start(folder)
    done = len(checks.rows) - 1
    lines = EpochLines(type(task).__name__, settings.checks, settings.verbose)
    try:
        if done < settings.checks:
            model.fit(
                _batches(images, targets, task, settings, first=done * every),
                steps_per_epoch=every,
                initial_epoch=done,
                epochs=settings.checks,
                callbacks=[_SeededByStep(settings.seed, every), checks, lines],
                shuffle=False,  # the steps have an order
                verbose=0,
            )
    finally:
        lines.close()
    named = dataclasses.replace(backbone, weights=f"pretrained by {type(task).__name__}")
    pretrained = Pretrained(named, model, task, checks.rows)
    if checks.diverged:
        log.warning("the loss became infinite and training stopped. Is the learning rate too high?")
    elif pretrained.collapsed:
        log.warning(
            "collapsed: what the network says is the same for all pictures. Do not use these weights. A deep network "
            "with batch norm looks like this after few steps too, until its averages have caught up: train it longer."
        )
    return pretrained


class _SeededByStep(keras.callbacks.Callback):
    """Sets what dropout draws from by the step, so that a run that goes on drops what the run in one piece does."""

    def __init__(self, seed: int, every: int):
        super().__init__()
        self.seed, self.every = seed, every

    def on_epoch_begin(self, epoch, logs=None):
        states = [variable for variable in self.model.non_trainable_variables if "seed_generator" in variable.path]
        for index, state in enumerate(states):
            state.assign([(1009 * self.seed + index) % 2**32, epoch * self.every])


class _BatchLoss(keras.losses.Loss):
    """A loss of a whole batch: a contrast between pictures is not a mean over them."""

    def __init__(self, function):
        super().__init__(name="pretext")
        self.function = function

    def call(self, y_true, y_pred):
        return self.function(y_true, y_pred)


def _checked(backbone: Backbone, images: np.ndarray, settings: Pretraining) -> np.ndarray:
    if backbone.model.input_shape[-1] != 3:
        raise ValueError(
            "Pretraining takes a backbone for RGB pictures: load it with channels=3 and pass grey pictures as "
            "np.repeat(images, 3, axis=-1). Once it is saved, load_backbone(..., channels=1) takes grey ones."
        )
    images = _fitting(backbone, images, "images")
    if len(images) < settings.batch_size:
        raise ValueError(f"{len(images)} pictures are less than a batch of {settings.batch_size}.")
    if frozen := [layer.name for layer in backbone.model.layers if not layer.trainable]:
        raise ValueError(
            f"{frozen[0]} and {len(frozen) - 1} more layers are frozen: pretraining takes a fresh backbone."
        )
    return images


def _fitting(backbone: Backbone, images: np.ndarray, name: str) -> np.ndarray:
    """Refuse pictures of another shape than the backbone's, or that are not raw."""
    images, wanted = np.asarray(images), backbone.model.input_shape[1:]
    if images.ndim != 4 or images.shape[1:] != wanted or not len(images):
        sides = ", ".join(map(str, wanted))
        raise ValueError(f"{name}: the backbone takes pictures (pictures, {sides}), got {images.shape}.")
    if images.dtype.kind not in "uif":
        raise ValueError(f"{name}: pictures must be numbers in [0, 255], got {images.dtype}.")
    if images.min() < 0 or not 1.5 < images.max() <= 255:
        low, high = images.min(), images.max()
        raise ValueError(f"{name}: pictures must be raw, in [0, 255]; these lie in [{low:.3g}, {high:.3g}].")
    return images


def split_in_half(images: np.ndarray, labels: np.ndarray, seed: int) -> tuple:
    """Halve labelled pictures, or their features, class by class."""
    from sklearn.model_selection import train_test_split

    images, labels = np.asarray(images), np.asarray(labels)
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu" or not labels.size or labels.min() < 0:
        raise ValueError(
            f"judge is (images, labels) with one whole number from 0 a picture, got {labels.dtype} labels "
            f"{labels.shape} for {len(images)} pictures."
        )
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2 or counts.min() < 4:
        raise ValueError(
            f"judge takes two classes or more, with at least four pictures of each; it has {len(classes)}, the "
            f"smallest with {counts.min()}."
        )
    learn, test = train_test_split(np.arange(len(labels)), test_size=0.5, stratify=labels, random_state=seed)
    return (images[learn], labels[learn]), (images[test], labels[test])


def _batches(images: np.ndarray, targets: np.ndarray, task: Pretext, settings: Pretraining, *, first: int):
    """Batches from step `first` on. The step decides everything random, so a run that goes on is the same run."""
    import tensorflow as tf

    per_pass = len(images) // settings.batch_size
    with tf.device("CPU:0"):
        images, targets = tf.constant(images), tf.constant(targets)

        @tf.autograph.experimental.do_not_convert
        def make(step):
            seed = tf.stack([tf.constant(settings.seed, tf.int64), step // per_pass])
            order = tf.random.experimental.stateless_shuffle(tf.range(len(images)), seed)
            start = tf.cast(step % per_pass, tf.int32) * settings.batch_size
            rows = order[start : start + settings.batch_size]
            rows.set_shape((settings.batch_size,))
            draw = tf.stack([tf.constant(settings.seed + 1, tf.int64), 16 * step])
            return task.batch(tf.cast(tf.gather(images, rows), tf.float32), tf.gather(targets, rows), draw)

        steps = tf.data.Dataset.range(first, settings.steps)
        return without_autotuning(steps.map(make, num_parallel_calls=2).prefetch(4))
