"""The two phases: train the head on a frozen backbone, then fine-tune the top at a low learning rate."""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np

from tlkeras.checkpoints import Checkpoint
from tlkeras.features import compute_features, feature_model
from tlkeras.freezing import AuditReport, FreezeAudit, trainable_layers, unfreeze_top
from tlkeras.optimizers import DiscriminativeAdam, learning_rate_factors, warmup_cosine
from tlkeras.progress import EpochLines

log = logging.getLogger("tlkeras")

CACHE_LIMIT = 2_000_000_000  # bytes of features that `train_head` keeps in memory


@dataclass(frozen=True)
class Settings:
    """How a phase is trained, apart from its epochs and learning rate; the defaults are the recommended practice.

    Attributes:
        patience: Epochs without a lower validation loss before a phase stops; None never stops early.
        class_weight: Weight of each class in the loss, such as `data.class_weight`; None weighs all alike.
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        warmup: Share of the steps over which the learning rate rises from 0, in [0, 1]; a cosine to 0 follows.
        head_factor: The head's learning rate in `fine_tune`, as a multiple of the backbone's top stage.
        stage_decay: Factor in (0, 1] on the learning rate for each stage further down; 1.0 treats all alike.
        views: Passes over the training data that `train_head` takes features from, the first without augmentation;
            None takes 4 if the model augments and 1 otherwise. 0 trains on pictures, epoch by epoch.
        run_folder: Where each epoch is saved, so that the same call goes on after a kill; None saves nothing.
        verbose: 0 is silent, 1 shows a progress bar, 2 prints a line an epoch.
    """

    patience: int | None = 5
    class_weight: dict[int, float] | None = None
    label_smoothing: float = 0.0
    warmup: float = 0.1
    head_factor: float = 10.0
    stage_decay: float = 1.0
    views: int | None = None
    run_folder: str | Path | None = None
    verbose: int = 1

    def __post_init__(self):
        """Refuse values outside their range."""
        for name, low, high in [("label_smoothing", 0, 0.999), ("warmup", 0, 1), ("stage_decay", 1e-6, 1)]:
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} lies in [{low}, {high}], got {getattr(self, name)}.")
        if self.head_factor <= 0:
            raise ValueError(f"head_factor must be positive, got {self.head_factor}.")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be None or at least 1, got {self.patience}.")


@dataclass(frozen=True)
class History:
    """What happened, epoch by epoch; add two to get both phases in one.

    Attributes:
        rows: A dictionary an epoch: phase, epoch (counted over both phases), loss, accuracy, val_loss, val_accuracy,
            learning_rate, seconds.
        audits: The freeze audit of each phase.
        kept: For each phase the epoch (0 is the state before it) whose weights the model now has.
        seconds: Wall time of each phase, features included.
    """

    rows: list[dict] = field(default_factory=list)
    audits: dict[str, AuditReport] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __add__(self, other: History) -> History:
        shift = len(self.rows)
        rows = self.rows + [{**row, "epoch": row["epoch"] + shift} for row in other.rows]
        return History(rows, self.audits | other.audits, self.kept | other.kept, self.seconds | other.seconds)

    def to_csv(self, path: str | Path) -> None:
        """Write a row an epoch."""
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)


def train_head(
    model: keras.Model,
    train: Iterable,
    validation: Iterable | None = None,
    *,
    epochs: int = 40,
    learning_rate: float = 1e-3,
    settings: Settings | None = None,
) -> History:
    """Train the head on the frozen backbone: the first phase.

    A frozen network gives the same answer every epoch, so the pictures go through it once (once for each view if
    the model augments) and the head trains on the stored features: minutes become seconds.

    Args:
        model: From `build_classifier`, with nothing of its backbone unfrozen.
        train: (images, labels) batches; images (batch, height, width, 3) in [0, 255].
        validation: The same for choosing the best epoch; None keeps the last.
        epochs: At most so many; early stopping usually ends sooner.
        learning_rate: Peak, for Adam with a warm-up and a cosine.
        settings: Everything else.

    Returns:
        The history; the model has the weights of the epoch with the lowest validation loss.

    Raises:
        ValueError: If part of the backbone is unfrozen or the pictures are not in [0, 255].
        FreezeError: If a weight outside the head moved.
    """
    settings = settings or Settings()
    open_layers = trainable_layers(model)
    if open_layers:
        raise ValueError(
            f"{len(open_layers)} backbone layers are unfrozen ({open_layers[-1]} ...). A random head's gradients would "
            "wreck them: call freeze(model) first, or fine_tune if the head is trained already."
        )
    _check_pictures(model, train)
    views = settings.views if settings.views is not None else 4 if _augments(model) else 1
    started = time.perf_counter()
    if not views or _feature_bytes(model, train, views) > CACHE_LIMIT:
        return _run(model, model, train, validation, "head", epochs, learning_rate, settings, started)
    with EpochLines.spinner("frozen backbone, once over the pictures", settings.verbose):
        train_features = compute_features(model, train, views=views)
        held_out = None if validation is None else compute_features(model, validation)
    inputs = keras.Input(train_features[0].shape[1:])
    outputs = inputs
    for name in model.transfer.head_layers:
        if name != "pool":
            outputs = model.get_layer(name)(outputs)  # the same layers: what trains here is the model's own head
    head = keras.Model(inputs, outputs)
    return _run(model, head, train_features, held_out, "head", epochs, learning_rate, settings, started)


def fine_tune(
    model: keras.Model,
    train: Iterable,
    validation: Iterable | None = None,
    *,
    epochs: int = 8,
    learning_rate: float = 1e-4,
    settings: Settings | None = None,
) -> History:
    """Train what `unfreeze_top` opened, and the head, at a low learning rate: the second phase.

    Compiles again, so that the changed `trainable` flags count. The weights kept are those with the lowest
    validation loss, the state before the first epoch included: fine-tuning that only hurts is undone.

    Args:
        model: From `build_classifier`, its head trained, its top unfrozen.
        train: (images, labels) batches; images (batch, height, width, 3) in [0, 255].
        validation: The same for choosing the best epoch; None keeps the last.
        epochs: At most so many.
        learning_rate: Peak for the backbone's top stage: a tenth of the head's, or less.
        settings: Everything else; `head_factor` and `stage_decay` set the rates relative to this one.

    Returns:
        The history of this phase; `train_head(...) + fine_tune(...)` is that of both.

    Raises:
        ValueError: If nothing of the backbone is unfrozen or the pictures are not in [0, 255].
        FreezeError: If a frozen weight or a batch-norm statistic of a frozen layer moved.
    """
    settings = settings or Settings()
    if not trainable_layers(model):
        raise ValueError("The backbone is frozen as a whole: call unfreeze_top(model, stages=1) before fine_tune.")
    _check_pictures(model, train)
    return _run(
        model, model, train, validation, "fine-tune", epochs, learning_rate, settings, time.perf_counter()
    )  # fmt: skip


def train_from_scratch(
    model: keras.Model,
    train: Iterable,
    validation: Iterable | None = None,
    *,
    epochs: int = 30,
    learning_rate: float = 1e-3,
    settings: Settings | None = None,
) -> History:
    """Train everything, batch norm included, at one learning rate: the contrast to transfer.

    Use it on `load_backbone(name, weights=None)`. The batch-norm momentum is lowered to 0.9, because Keras's 0.999
    needs thousands of steps before inference sees statistics that fit the weights, which would make a short training
    from scratch look worse than it is.

    Args:
        model: From `build_classifier`.
        train: (images, labels) batches; images (batch, height, width, 3) in [0, 255].
        validation: The same for choosing the best epoch; None keeps the last.
        epochs: At most so many.
        learning_rate: Peak, for all layers.
        settings: Everything else; `head_factor` does not apply.

    Returns:
        The history, one phase named "scratch".
    """
    unfreeze_top(model, 1.0, batch_norm=True)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9
    _check_pictures(model, train)
    started = time.perf_counter()
    return _run(model, model, train, validation, "scratch", epochs, learning_rate, settings or Settings(), started)


def _run(owner, trained, train, validation, phase, epochs, learning_rate, settings, started) -> History:
    """Compile and fit `trained`, which shares its layers with `owner`; audit the owner."""
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}.")
    arrays = isinstance(train, tuple)
    steps = -(-len(train[1]) // 32) if arrays else _num_batches(train)
    checkpoint = Checkpoint(
        owner, phase, patience=settings.patience, folder=settings.run_folder, judged=validation is not None
    )
    resumed = checkpoint.load()
    factors = learning_rate_factors(owner, settings.head_factor, settings.stage_decay) if phase == "fine-tune" else {}
    optimizer = DiscriminativeAdam(warmup_cosine(learning_rate, steps * epochs, settings.warmup), factors=factors)
    trained.compile(optimizer, **_objective(owner, settings.label_smoothing))
    if resumed:
        checkpoint.restore(trained.optimizer, trained.trainable_variables)
    elif validation is not None:
        held_out = validation if arrays else (validation,)
        checkpoint.start(trained.evaluate(*held_out, verbose=0, return_dict=True)["loss"])
    audit = FreezeAudit(owner)
    lines = EpochLines(phase, epochs, settings.verbose)
    fit = {"x": train[0], "y": train[1], "batch_size": 32} if arrays else {"x": train, "shuffle": False}
    try:
        if not checkpoint.done:
            trained.fit(
                **fit,
                validation_data=validation,
                initial_epoch=checkpoint.epoch,
                epochs=epochs,
                class_weight=settings.class_weight,
                callbacks=[checkpoint, lines],
                verbose=0,
            )
        if trained is not owner:
            owner.compile(trained.optimizer, **_objective(owner, settings.label_smoothing))  # for `model.evaluate`
        if checkpoint.audit is None:
            checkpoint.audit = audit.check().to_dict()
            checkpoint.save()
    finally:
        # Also after Ctrl-C: the best weights so far are worth more than the last.
        lines.close()
        checkpoint.keep_best()
    report = AuditReport.from_dict(checkpoint.audit)
    if not np.isfinite(checkpoint.rows[-1]["loss"]):
        log.warning("%s: the loss became infinite and training stopped. Is the learning rate too high?", phase)
    if checkpoint.kept == 0:
        log.warning("%s: no epoch had a lower validation loss than the state before it, which was put back.", phase)
    seconds = time.perf_counter() - started
    return History(checkpoint.rows, {phase: report}, {phase: checkpoint.kept}, {phase: seconds})


def _objective(model: keras.Model, label_smoothing: float) -> dict:
    task = model.transfer.task
    if task == "regression":
        error = keras.metrics.MeanAbsoluteError(name="mean_absolute_error")
        return {"loss": keras.losses.MeanSquaredError(), "metrics": [error]}
    if task in ("binary", "multi-label"):
        accuracy = keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0)  # the model gives logits
        loss = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=label_smoothing)
        return {"loss": loss, "metrics": [accuracy]}
    accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    if not label_smoothing:
        return {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "metrics": [accuracy]}

    def smoothed(truth, logits):
        target = keras.ops.one_hot(keras.ops.cast(keras.ops.reshape(truth, (-1,)), "int32"), logits.shape[-1])
        return keras.losses.categorical_crossentropy(target, logits, from_logits=True, label_smoothing=label_smoothing)

    return {"loss": smoothed, "metrics": [accuracy]}


def _check_pictures(model: keras.Model, batches: Iterable) -> None:
    if not isinstance(batches, Iterable) or isinstance(batches, tuple):
        raise ValueError("Training data must be batches of (images, labels), such as `data.train`.")
    images, labels = next(iter(batches))
    highest, lowest = float(np.max(images)), float(np.min(images))
    if highest <= 1.5 or lowest < 0:
        raise ValueError(
            f"Pictures must be raw, in [0, 255]; the first batch lies in [{lowest:.3g}, {highest:.3g}]. The model does "
            "the preprocessing itself: leave out `preprocess_input` and any division by 255."
        )
    expected = model.outputs[0].shape[-1]
    if model.transfer.task == "classification" and int(np.max(labels)) >= expected:
        raise ValueError(f"Label {int(np.max(labels))} does not fit a head of {expected} classes, numbered from 0.")


def _num_batches(batches: Iterable) -> int:
    count = int(batches.cardinality()) if hasattr(batches, "cardinality") else len(batches)
    if count < 1:
        raise ValueError("The number of batches must be known and finite: leave out `repeat()` or `take` a number.")
    return count


def _feature_bytes(model: keras.Model, train: Iterable, views: int) -> int:
    images, _ = next(iter(train))
    shape = feature_model(model).output_shape[1:]
    return 2**62 if None in shape else 4 * int(np.prod(shape)) * _num_batches(train) * len(images) * views


def _augments(model: keras.Model) -> bool:
    return bool(model.get_layer("augmentation").steps)
