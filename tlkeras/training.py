"""The two phases: train the head on a frozen backbone, then fine-tune the top at a low learning rate.

Everywhere here `train` and `validation` are batches of (images, labels), images (batch, height, width, 3) in
[0, 255], in one of the forms that `batches` lists, such as `data.train` of a loader.
"""

from __future__ import annotations

import dataclasses
import logging
import random
import time
from collections.abc import Iterable

import keras
import numpy as np

from tlkeras.arguments import real_number, whole_number
from tlkeras.audit import AuditReport, FreezeAudit, FreezeError
from tlkeras.batches import check_batches, check_labels, count_batches
from tlkeras.checkpoints import Checkpoint
from tlkeras.engines import compute_precision
from tlkeras.features import compute_features, count_views, cut_point, top_model
from tlkeras.freezing import set_trainable_layers, stage_depths, trainable_layers, transfer_of, unfreeze_top
from tlkeras.heads import AUGMENTATION
from tlkeras.history import History
from tlkeras.optimizers import (
    ClassWeightedAccuracy,
    DiscriminativeAdam,
    class_weights,
    learning_rate_factors,
    make_objective,
    warmup_cosine,
)
from tlkeras.pipelines import make_batches, without_autotuning
from tlkeras.progress import EpochLines
from tlkeras.settings import Settings

log = logging.getLogger("tlkeras")

BATCH_SIZE = 32  # of stored features; pictures come in batches already


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
        The history; the model has the weights of the epoch with the lowest validation loss, those before the first
        epoch included.

    Raises:
        ValueError: If part of the backbone is unfrozen, pictures are not in [0, 255], labels do not fit the task, the
            data are empty or endless, or the run folder holds another run.
        FreezeError: If a weight outside the head moved.
    """
    if layers := trainable_layers(model):
        raise ValueError(
            f"{len(layers)} backbone layers are unfrozen ({layers[-1]} ...). A random head's gradients would wreck "
            "them: call freeze(model) first, or fine_tune if the head is trained already."
        )
    return _train("head", model, train, validation, epochs, learning_rate, settings or Settings())


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

    Compiles again, so that the changed `trainable` flags count. The weights kept are those of the epoch with the lowest
    validation loss, the state before the first one included, or as `interpolate` of the settings says: fine-tuning
    that only hurts is undone.

    Args:
        model: From `build_classifier`, its head trained, its top unfrozen.
        train: (images, labels) batches; images (batch, height, width, 3) in [0, 255].
        validation: The same for choosing the best epoch; None keeps the last.
        epochs: At most so many.
        learning_rate: Peak for the backbone's top stage; the head has ten times it unless `head_factor` says otherwise.
        settings: Everything else; `head_factor` and `stage_decay` set the rates relative to this one.

    Returns:
        The history of this phase; `train_head(...) + fine_tune(...)` is that of both.

    Raises:
        ValueError: If nothing of the backbone is unfrozen; else as in `train_head`.
        FreezeError: If a frozen weight or a batch-norm statistic of a frozen layer moved.
    """
    return _train("fine-tune", model, train, validation, epochs, learning_rate, settings or Settings())


def fine_tune_gradually(
    model: keras.Model,
    train: Iterable,
    validation: Iterable | None = None,
    *,
    epochs: int = 3,
    learning_rate: float = 1e-4,
    settings: Settings | None = None,
) -> History:
    """Fine-tune what `unfreeze_top` opened stage by stage: first the top one, then each time one more.

    Gradual unfreezing (Howard and Ruder 2018, https://arxiv.org/abs/1801.06146): a lower stage moves only once those
    above it have settled. It costs a phase for each stage, so try plain `fine_tune` first. Call
    `unfreeze_top(model, stages)` before, for all the stages that shall move in the end.

    Arguments and errors are those of `fine_tune`; `epochs` and the warm-up count for each stage anew. Returns the
    history of phases "fine-tune 1", "fine-tune 2" and so on, each audited and each resumed after a kill.
    """
    depths, opened = stage_depths(transfer_of(model)), trainable_layers(model)
    if not opened:
        raise ValueError("The backbone is frozen as a whole: call unfreeze_top(model, stages=3) first.")
    history = History()
    for step, depth in enumerate(sorted({depths[name] for name in opened}), 1):
        set_trainable_layers(model, [name for name in opened if depths[name] <= depth])
        phase = f"fine-tune {step}"
        try:
            history += _train(phase, model, train, validation, epochs, learning_rate, settings or Settings())
        finally:
            set_trainable_layers(model, opened)  # also after Ctrl-C, or the next call would open less
    return history


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

    Arguments and errors are those of `train_head`; `head_factor` and `stage_decay` of the settings do not apply.
    Returns the history of one phase, named "scratch".
    """
    unfreeze_top(model, 1.0, batch_norm=True)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9
    settings = dataclasses.replace(settings or Settings(), head_factor=1.0, stage_decay=1.0)
    return _train("scratch", model, train, validation, epochs, learning_rate, settings)


def _train(phase, model, train, validation, epochs, learning_rate, settings) -> History:
    """One phase: check, compile, fit, audit, and put the best weights into the model."""
    started = time.perf_counter()
    if not isinstance(settings, Settings):
        raise ValueError(f"settings are Settings(patience=3, ...), got {settings!r}.")
    epochs, learning_rate = whole_number("epochs", epochs, 1), real_number("learning_rate", learning_rate, "(0, inf)")
    weights = class_weights(model, settings.class_weight)
    train, validation = without_autotuning(train), without_autotuning(validation)
    num_pictures = check_batches(model, train)
    trained, inputs, num_batches = model, (train,), count_batches(train)
    held_out = None if validation is None else (validation,)
    num_held_out = check_batches(model, validation) if held_out else 0
    call = {"epochs": epochs, "learning_rate": learning_rate, "class_weight": weights}
    for name in ("patience", "label_smoothing", "warmup", "head_factor", "stage_decay", "views"):
        call[name] = None if getattr(settings, name) is None else float(getattr(settings, name))
    tuning = phase.startswith("fine-tune")
    share = settings.interpolate or 1.0 if tuning else 1.0
    if search := share == "best":
        share = 1.0 if held_out else 0.5
    call["interpolate"] = "best" if search else "a share"
    call["batches"] = [num_batches, held_out and count_batches(validation)]
    checkpoint = Checkpoint(model, phase, call, patience=settings.patience, folder=settings.run_folder)
    checkpoint.load()
    seconds_before = sum(row["seconds"] for row in checkpoint.rows)
    if phase != "head" and not trainable_layers(model):
        raise ValueError("The backbone is frozen as a whole: call unfreeze_top(model, stages=1) before fine_tune.")
    if checkpoint.done:
        log.warning("%s: nothing is trained, for %s has this phase from before.", phase, checkpoint.path)
    elif tuning and checkpoint.starts_elsewhere():
        log.warning(
            "%s: goes on from %s, which began with another head than the model has now. To start from this one, "
            "delete it or choose another run folder.", phase, checkpoint.path,
        )  # fmt: skip
    views = 0 if checkpoint.done else _default_views(model, phase, settings.views)
    if views := count_views(model, num_pictures, num_held_out, views=views):
        with EpochLines.spinner("frozen layers, once over the pictures", settings.verbose):
            cut = cut_point(model)
            inputs = compute_features(model, train, views=views, layer=cut)
            held_out = held_out and compute_features(model, validation, layer=cut)
        for _, labels in (inputs, held_out) if held_out else (inputs,):
            check_labels(model, labels)
        trained, num_batches = top_model(model), -(-len(inputs[1]) // BATCH_SIZE)
        if keras.backend.backend() == "tensorflow":
            inputs = (make_batches(*inputs, batch_size=BATCH_SIZE, seed=random.randrange(2**31)),)
            held_out = held_out and (make_batches(*held_out, batch_size=8 * BATCH_SIZE),)
    dials = settings.head_factor or 10.0, settings.stage_decay
    factors = {} if phase == "head" else learning_rate_factors(model, *dials)
    schedule = warmup_cosine(learning_rate, num_batches * epochs, settings.warmup)
    optimizer = DiscriminativeAdam(schedule, factors=factors)
    if compute_precision(model) == "float16":  # Keras asks the model's policy, which a loaded model has lost
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    objective = make_objective(model, settings.label_smoothing, weights)
    if search and weights:
        objective["metrics"].append(ClassWeightedAccuracy(weights))
    trained.compile(optimizer, **objective)
    if trained is not model:
        model.compile(optimizer, **make_objective(model, settings.label_smoothing, weights))  # for `model.evaluate`
    trained.optimizer.build(trained.trainable_variables)  # or Keras traces the first step twice, up to half its time
    loss_before = np.inf
    if not checkpoint.restore(trained) and held_out and phase != "scratch":  # random weights are no candidate
        loss_before = trained.evaluate(*held_out, verbose=0, return_dict=True)["loss"]
    checkpoint.start(trained, FreezeAudit(model, batch_norm=True), loss_before)
    lines = EpochLines(phase, epochs, settings.verbose)
    try:
        if not checkpoint.done:
            trained.fit(
                *inputs,
                batch_size=BATCH_SIZE if len(inputs) == 2 else None,
                shuffle=len(inputs) == 2,  # batches come shuffled
                validation_data=held_out,
                initial_epoch=checkpoint.epoch,
                epochs=epochs,
                callbacks=[checkpoint, lines],
                verbose=0,
            )
        if search and held_out:
            checkpoint.search_line(lambda: trained.evaluate(*held_out, verbose=0, return_dict=True))
    finally:
        # Also after Ctrl-C: the best weights so far are worth more than the last.
        lines.close()
        checkpoint.keep_best(share)
    report, kept = AuditReport.from_dict(checkpoint.audit), checkpoint.kept
    if report.problem:
        raise FreezeError(report.problem)
    if not np.isfinite(checkpoint.rows[-1]["loss"]):
        log.warning("%s: the loss became infinite and training stopped. Is the learning rate too high?", phase)
    elif kept == 0:
        log.warning("%s: nothing was better on validation data than the state before it, which was put back.", phase)
    seconds = seconds_before + time.perf_counter() - started
    return History(checkpoint.rows, {phase: report}, {phase: kept}, {phase: seconds}, {phase: checkpoint.share})


def _default_views(model: keras.Model, phase: str, views: int | None) -> int:
    if views is not None:
        return views
    return 0 if phase != "head" else 4 if model.get_layer(AUGMENTATION).steps else 1
