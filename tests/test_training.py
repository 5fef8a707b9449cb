import csv

import keras
import numpy as np
import pytest
from conftest import make_tiny_backbone

from tlkeras.audit import FreezeAudit, FreezeError
from tlkeras.checkpoints import SHARES, Checkpoint
from tlkeras.freezing import trainable_layers, unfreeze_stages, unfreeze_top
from tlkeras.heads import build_classifier, build_head
from tlkeras.history import History
from tlkeras.optimizers import ClassWeightedAccuracy, SmoothedCrossentropy
from tlkeras.settings import Settings
from tlkeras.training import fine_tune, fine_tune_gradually, train_from_scratch, train_head

QUIET = Settings(verbose=0, warmup=0.0)


def make_batches(images, labels, batch_size=20):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((images.astype("float32"), labels)).batch(batch_size)


def make_lively_backbone():
    """The tiny backbone with kernels large enough for random features to tell the colours apart."""
    backbone = make_tiny_backbone()
    for weight in backbone.model.trainable_weights:
        weight.assign(2 * weight)
    return backbone


@pytest.fixture
def data(colour_pictures):
    return make_batches(*colour_pictures)


def backbone_weights(model):
    return [w for name in model.transfer.backbone_layers for w in model.get_layer(name).get_weights()]


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


# --- the head ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("views", [None, 0])
def test_the_head_learns_from_stored_features_what_it_learns_from_pictures(data, views):
    model = build_classifier(make_lively_backbone(), 3)
    before = backbone_weights(model)
    settings = Settings(verbose=0, views=views, patience=None)
    history = train_head(model, data, data, epochs=30, learning_rate=0.1, settings=settings)
    assert same(before, backbone_weights(model))
    result = model.evaluate(data, verbose=0, return_dict=True)
    assert result["accuracy"] > 0.8
    assert result["loss"] == pytest.approx(min(row["val_loss"] for row in history.rows), rel=1e-4)
    assert history.kept["head"] == 1 + np.argmin([row["val_loss"] for row in history.rows])
    assert [row["epoch"] for row in history.rows] == list(range(1, 31))
    assert history.audits["head"].moved == 2


def test_stored_features_of_an_augmented_model_hold_four_views(data):
    model = build_classifier(make_tiny_backbone(), 3, augmentation=keras.layers.RandomFlip())
    train_head(model, data, epochs=1, settings=QUIET)
    assert int(model.optimizer.iterations) == -(-4 * 60 // 32)


def test_a_head_without_pooling_trains_on_the_stored_feature_map(data):
    head = keras.Sequential([keras.layers.Conv2D(8, 2, name="pool"), keras.layers.Flatten(), keras.layers.Dense(3)])
    model = build_classifier(make_tiny_backbone(), 3, head=head)
    assert train_head(model, data, epochs=1, settings=QUIET).audits["head"].moved == 4


def softmax_loss(logits, labels, smoothing=0.0):
    shares = np.exp(logits - logits.max(1, keepdims=True))
    target = np.eye(logits.shape[1])[labels] * (1 - smoothing) + smoothing / logits.shape[1]
    return -(target * np.log(shares / shares.sum(1, keepdims=True))).sum(1)


def sigmoid_loss(logits, target, smoothing=0.0):
    target = target * (1 - smoothing) + smoothing / 2
    p = 1 / (1 + np.exp(-logits))
    return -(target * np.log(p) + (1 - target) * np.log(1 - p)).mean(1)


RNG = np.random.default_rng(0)
CLASSES, BINARY, LABELS = np.arange(60) % 3, np.arange(60) % 2, RNG.integers(0, 2, (60, 3))
VALUES, WEIGHT = RNG.normal(size=(60, 3)), np.array([1.0, 2.0, 5.0])


@pytest.mark.parametrize(
    ("task", "labels", "settings", "loss"),
    [
        ("classification", CLASSES, {}, lambda z: softmax_loss(z, CLASSES)),
        ("classification", CLASSES, {"label_smoothing": 0.3}, lambda z: softmax_loss(z, CLASSES, 0.3)),
        (
            "classification",
            CLASSES,
            {"class_weight": dict(enumerate(WEIGHT))},
            lambda z: WEIGHT[CLASSES] * softmax_loss(z, CLASSES),
        ),
        ("binary", BINARY, {"label_smoothing": 0.3}, lambda z: sigmoid_loss(z, BINARY[:, None], 0.3)),
        ("multi-label", LABELS, {}, lambda z: sigmoid_loss(z, LABELS)),
        ("regression", VALUES, {}, lambda z: ((z - VALUES) ** 2).mean(1)),
    ],
)
def test_the_loss_is_the_one_of_the_task_and_the_settings(colour_pictures, task, labels, settings, loss):
    model = build_classifier(
        make_lively_backbone(), 3, task=task, head=build_head(1 if task == "binary" else 3, dropout=0)
    )
    images = colour_pictures[0].astype("float32")
    logits = model.predict(images, verbose=0).astype("float64")
    history = train_head(
        model, make_batches(images, labels), epochs=1, learning_rate=1e-6, settings=Settings(verbose=0, **settings)
    )
    assert history.rows[0]["loss"] == pytest.approx(loss(logits).mean(), rel=1e-3)


def test_a_model_trained_with_label_smoothing_can_be_saved_and_loaded(data, tmp_path):
    model = build_classifier(make_tiny_backbone(), 3)
    train_head(model, data, epochs=1, settings=Settings(verbose=0, label_smoothing=0.1))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.loss, SmoothedCrossentropy)
    assert loaded.evaluate(data, verbose=0) == pytest.approx(model.evaluate(data, verbose=0))


# --- fine-tuning ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("views", [0, 2])
def test_fine_tuning_moves_the_top_and_nothing_below(data, views):
    model = build_classifier(make_lively_backbone(), 3)
    unfreeze_top(model, 1)
    before = {v.path: np.array(v) for v in model.weights}
    history = fine_tune(
        model, data, data, epochs=2, learning_rate=1e-3, settings=Settings(verbose=0, warmup=0.0, views=views)
    )
    moved = {v.path for v in model.weights if not np.array_equal(before[v.path], np.array(v))}
    assert moved == {"conv_2/kernel", "depthwise_2/kernel", "depthwise_2/bias", "logits/kernel", "logits/bias"}
    losses = [row["val_loss"] for row in history.rows]
    assert model.evaluate(data, verbose=0)[0] == pytest.approx(min(losses), rel=1e-4)
    assert history.audits["fine-tune"].statistics_moved == ()
    steps = 2 * (len(data) if not views else -(-60 * views // 32))
    assert int(model.optimizer.iterations) == steps  # over pictures, or over stored features at the cut


def test_fine_tuning_that_only_hurts_stops_early_and_is_undone(data, caplog):
    model = build_classifier(make_lively_backbone(), 3)
    train_head(model, data, data, epochs=5, learning_rate=0.1, settings=QUIET)
    unfreeze_top(model, 1)
    before = model.get_weights()
    settings = Settings(verbose=0, warmup=0.0, patience=2)
    history = fine_tune(model, data, data, epochs=6, learning_rate=1.0, settings=settings)
    assert len(history.rows) == 2 and history.kept == {"fine-tune": 0}
    assert same(before, model.get_weights())
    assert "nothing was better on validation data" in caplog.text


def test_each_stage_takes_steps_as_long_as_its_rate_says_under_adam(data):
    model = build_classifier(make_lively_backbone(), 3)
    unfreeze_top(model, 3)
    before = {v.path: np.array(v) for v in model.trainable_variables}
    settings = Settings(verbose=0, warmup=0.0, head_factor=10.0, stage_decay=0.1)
    fine_tune(model, data.take(1), epochs=1, learning_rate=1e-3, settings=settings)
    # Adam's first step on a weight is the learning rate itself, wherever its gradient is not next to nothing.
    step = {v.path: np.abs(np.array(v) - before[v.path]).max() for v in model.trainable_variables}
    assert step["logits/kernel"] == pytest.approx(1e-2, rel=0.01)
    assert step["conv_2/kernel"] == pytest.approx(1e-3, rel=0.01)
    assert step["conv_1/kernel"] == pytest.approx(1e-4, rel=0.01)
    assert step["conv_0/kernel"] == pytest.approx(1e-5, rel=0.01)


def test_surgical_fine_tuning_moves_one_stage_and_nothing_above_or_below(data):
    model = build_classifier(make_lively_backbone(), 3)
    opened = unfreeze_stages(model, model.transfer.stages[1:2])
    before = {v.path: np.array(v) for v in model.weights}
    history = fine_tune(model, data, epochs=1, learning_rate=1e-3, settings=QUIET)
    moved = {v.path.split("/")[0] for v in model.weights if not np.array_equal(before[v.path], np.array(v))}
    assert moved == {*opened, "logits"} and "conv_1" in opened and not history.audits["fine-tune"].problem
    with pytest.raises(ValueError, match="has no stage 'conv_9'; it has "):
        unfreeze_stages(model, "conv_9")


@pytest.mark.parametrize("batch_norm", [False, True], ids=["frozen", "batch norm too"])
def test_interpolation_ends_between_the_weights_before_and_the_trained_ones(data, tmp_path, batch_norm):
    found = {}
    for share in (1.0, 0.5, 0.25):
        keras.utils.set_random_seed(0)
        model = build_classifier(make_lively_backbone(), 3)
        unfreeze_top(model, 1, batch_norm=batch_norm)
        start = model.get_weights()
        settings = Settings(verbose=0, interpolate=share, run_folder=tmp_path / str(share))
        for again in range(3):  # the second and the third call take the finished run from its folder
            if again == 2:  # in a new process: another random head, the backbone still frozen
                model = build_classifier(make_lively_backbone(), 3)
            fine_tune(model, data, data, epochs=2, learning_rate=1e-3, settings=settings)
            found.setdefault(share, []).append(model.get_weights())
    for share in (0.5, 0.25):
        for run in found[share]:
            for a, b, c in zip(start, found[1.0][0], run, strict=True):
                np.testing.assert_allclose(c, a + share * (b - a), atol=1e-6)


@pytest.mark.parametrize("learning_rate", [1e-3, 3.0], ids=["a good rate", "one that only does harm"])
def test_the_best_of_the_way_has_the_lowest_validation_loss_of_it(data, tmp_path, learning_rate):
    def fresh():
        keras.utils.set_random_seed(0)
        model = build_classifier(make_lively_backbone(), 3)
        unfreeze_top(model, 1)
        return model

    call = {"epochs": 2, "learning_rate": learning_rate}
    model, start = fresh(), fresh().get_weights()
    fine_tune(model, data, settings=Settings(verbose=0, interpolate=1.0), **call)
    last, model, found, losses, least = model.get_weights(), fresh(), [], {}, None
    settings = Settings(verbose=0, interpolate="best", run_folder=tmp_path)
    for again in (model, model, fresh()):  # the second and the third call take the finished run from its folder
        history = fine_tune(again, data, data, settings=settings, **call)
        found.append((again.get_weights(), history.shares["fine-tune"], history.kept["fine-tune"]))
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        model.set_weights([a + share * (b - a) for a, b in zip(start, last, strict=True)])
        judged = model.evaluate(data, verbose=0, return_dict=True)
        least = judged["accuracy"] if least is None else least
        losses[share] = judged["loss"] if judged["accuracy"] >= least else np.inf
    best = min(losses, key=losses.get)
    assert (best == 0) == (learning_rate > 1)
    for weights, share, kept in found:
        assert share == best and kept == (2 if best else 0)
        for a, b, c in zip(start, last, weights, strict=True):
            np.testing.assert_allclose(c, a + best * (b - a), atol=1e-5)


@pytest.mark.parametrize(
    ("accuracies", "share"),
    [
        ([0.8, 0.8, 0.9, 0.9, 0.9], 0.25),
        ([0.8, 0.7, 0.9, 0.8, 0.9], 0.75),
        ([0.8, 0.7, 0.7, 0.7, 0.7], 0.0),
        (None, 0.25),
    ],
    ids=["as right", "less right at the lowest loss", "less right everywhere", "a task without accuracy"],
)
def test_a_lower_loss_does_not_count_where_fewer_are_right(accuracies, share):
    model = build_classifier(make_tiny_backbone(), 3)
    checkpoint = Checkpoint(model, "fine-tune", {}, patience=None, folder=None)
    checkpoint.start(model, FreezeAudit(model), np.inf)
    losses = [1.0, 0.5, 0.7, 0.6, 0.9]
    judged = [{"loss": loss} | ({"accuracy": accuracies[k]} if accuracies else {}) for k, loss in enumerate(losses)]
    checkpoint.search_line(iter(judged).__next__)
    assert checkpoint.share == share


def test_who_is_stopped_on_the_way_keeps_the_best_epoch():
    model = build_classifier(make_tiny_backbone(), 3)
    checkpoint = Checkpoint(model, "fine-tune", {}, patience=None, folder=None)
    checkpoint.start(model, FreezeAudit(model), np.inf)
    checkpoint.best_weights = {k: value + 1 for k, value in checkpoint.first_weights.items()}  # of an epoch

    judged = [{"loss": 1.0, "accuracy": 0.5}]

    def judge():
        if judged:
            return judged.pop()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.search_line(judge)
    checkpoint.keep_best()
    assert (checkpoint.share, checkpoint.kept) == (1.0, 0)
    for k, variable in enumerate(model.weights):
        np.testing.assert_array_equal(np.array(variable), checkpoint.first_weights[k] + 1)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_pictures_count_by_the_weight_of_their_class_in_the_accuracy_too(num_classes):
    labels, rng = np.array([0, 0, 0, 1]), np.random.default_rng(0)
    logits = rng.normal(size=(4, num_classes if num_classes > 2 else 1)).astype("float32")
    guess = logits.argmax(-1) if num_classes > 2 else (logits[:, 0] > 0).astype(int)
    weights = [1.0, 6.0, 2.0][:num_classes]
    metric = ClassWeightedAccuracy(weights)
    metric.update_state(labels, logits)
    each = np.array([weights[label] for label in labels])
    np.testing.assert_allclose(float(metric.result()), (each * (guess == labels)).sum() / each.sum(), rtol=1e-6)
    assert ClassWeightedAccuracy.from_config(metric.get_config()).weights_of_classes == weights


def test_a_rare_class_that_counts_more_is_not_outvoted_on_the_way():
    model = build_classifier(make_tiny_backbone(), 3)
    checkpoint = Checkpoint(model, "fine-tune", {}, patience=None, folder=None)
    checkpoint.start(model, FreezeAudit(model), np.inf)
    judged = [{"loss": 1 - share, "accuracy": 0.9 - share / 10, "weighted_accuracy": share} for share in SHARES]
    checkpoint.search_line(iter(judged).__next__)
    assert checkpoint.share == 1.0


def test_the_best_of_the_way_is_sought_by_the_weights_of_the_classes(data):
    for class_weight in (None, {0: 5.0}):
        model = build_classifier(make_tiny_backbone(), 3)
        unfreeze_top(model, 1)
        settings = Settings(verbose=0, interpolate="best", class_weight=class_weight)
        history = fine_tune(model, data, data, epochs=1, settings=settings)
        assert ("val_weighted_accuracy" in history.rows[0]) == bool(class_weight)


def test_where_training_diverges_the_way_ends_at_its_beginning(data, tmp_path):
    model = build_classifier(make_lively_backbone(), 3)
    unfreeze_top(model, 1)
    before = model.get_weights()
    settings = Settings(verbose=0, interpolate="best", run_folder=tmp_path)
    for _ in range(2):  # the second time from the run folder
        history = fine_tune(model, data, data, epochs=3, learning_rate=1e38, settings=settings)
        assert history.shares == {"fine-tune": 0.0} and history.kept == {"fine-tune": 0}
        assert all(np.array_equal(old, new) for old, new in zip(before, model.get_weights(), strict=True))


def test_half_of_the_way_is_best_where_nothing_is_held_out(data):
    model = build_classifier(make_lively_backbone(), 3)
    unfreeze_top(model, 1)
    history = fine_tune(model, data, epochs=1, settings=Settings(verbose=0, interpolate="best"))
    assert history.shares == {"fine-tune": 0.5}


def test_a_run_that_sought_the_best_of_the_way_is_not_gone_on_with_as_another(data, tmp_path):
    for interpolate in ("best", 1.0):
        model = build_classifier(make_lively_backbone(), 3)
        unfreeze_top(model, 1)
        settings = Settings(verbose=0, interpolate=interpolate, run_folder=tmp_path)
        if interpolate == "best":
            fine_tune(model, data, data, epochs=1, settings=settings)
    with pytest.raises(ValueError, match="was saved with interpolate = 'best', now it is 'a share'"):
        fine_tune(model, data, data, epochs=1, settings=settings)


def test_gradual_unfreezing_opens_one_stage_more_each_phase(data, tmp_path):
    settings = Settings(verbose=0, run_folder=tmp_path)
    model = build_classifier(make_tiny_backbone(), 3)
    opened = unfreeze_top(model, 2)
    history = fine_tune_gradually(model, data, epochs=1, settings=settings)
    assert [row["phase"] for row in history.rows] == ["fine-tune 1", "fine-tune 2"]
    assert [row["epoch"] for row in history.rows] == [1, 2]
    assert [report.planned for report in history.audits.values()] == [5, 8]
    assert trainable_layers(model) == opened

    again = build_classifier(make_tiny_backbone(), 3)
    unfreeze_top(again, 2)
    assert fine_tune_gradually(again, data, epochs=1, settings=settings).rows == history.rows
    assert same(model.get_weights(), again.get_weights())


def test_training_from_scratch_moves_everything_batch_norm_included(data):
    model = build_classifier(make_tiny_backbone(), 3)
    history = train_from_scratch(model, data, epochs=1, learning_rate=1e-3, settings=QUIET)
    report = history.audits["scratch"]
    assert (report.moved, report.frozen, len(report.statistics_moved)) == (report.planned, 0, 6)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="only TensorFlow may trace a step twice")
@pytest.mark.parametrize("held_out", [True, False], ids=["validation", "none"])
@pytest.mark.parametrize("phase", [fine_tune, train_from_scratch])
def test_a_step_is_traced_once(data, phase, held_out):
    model, traced = build_classifier(make_tiny_backbone(), 3), []
    unfreeze_top(model, stages=1)
    step = model.train_step
    model.train_step = lambda batch: traced.append(batch) or step(batch)  # Python runs only while it is traced
    phase(model, data, data if held_out else None, epochs=2, settings=QUIET)
    assert len(traced) == 1


def test_a_loss_that_becomes_infinite_ends_training_with_the_weights_from_before(data, caplog):
    model = build_classifier(make_lively_backbone(), 3)
    before = model.get_weights()
    history = train_head(model, data, epochs=5, learning_rate=1e38, settings=QUIET)
    assert len(history.rows) == 1 and not np.isfinite(history.rows[0]["loss"])
    assert same(before, model.get_weights())
    assert "learning rate too high" in caplog.text


def test_a_step_too_small_to_move_anything_fails_the_audit(data):
    with pytest.raises(FreezeError, match="No trainable variable moved"):
        train_head(build_classifier(make_lively_backbone(), 3), data, epochs=1, learning_rate=1e-60, settings=QUIET)


def test_both_phases_run_under_mixed_precision(data):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = build_classifier(make_tiny_backbone(), 3)
        train_head(model, data, data, epochs=2, settings=QUIET)
        unfreeze_top(model, 1)
        history = fine_tune(model, data, data, epochs=2, settings=QUIET)
    finally:
        keras.config.set_dtype_policy("float32")
    assert hasattr(model.optimizer, "inner_optimizer")
    assert history.audits["fine-tune"].problem is None


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def idle_model():
    return build_classifier(make_tiny_backbone(), 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"learning_rate": -1.0}, r"learning_rate must be a number in \(0, inf\), got -1.0"),
    ],
)
def test_wrong_numbers_are_refused(idle_model, data, arguments, message):
    with pytest.raises(ValueError, match=message):
        train_head(idle_model, data, settings=QUIET, **arguments)


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        (lambda d: d.repeat(), lambda d: d, "never ends"),
        (lambda d: d, lambda d: d.repeat(), "never ends"),
        (lambda d: d.take(0), lambda d: None, "empty"),
        (lambda d: d, lambda d: d.map(lambda x, y: (x / 255, y)), r"raw, in \[0, 255\]"),
        (lambda d: d.map(lambda x, y: (x - 128, y)), lambda d: None, r"raw, in \[0, 255\]"),
        (lambda d: d.map(lambda x, y: (x, y + 1)), lambda d: None, "whole numbers from 0 to 2"),
        (lambda d: next(iter(d)), lambda d: None, "got tuple. For arrays: make_batches"),
    ],
)
def test_wrong_data_are_refused_in_either_place_by_either_phase(idle_model, data, train, validation, message):
    with pytest.raises(ValueError, match=message):
        train_head(idle_model, train(data), validation(data), settings=QUIET)


def test_a_wrong_label_in_a_later_batch_is_found_as_well(idle_model, colour_pictures):
    images, labels = colour_pictures
    with pytest.raises(ValueError, match="whole numbers from 0 to 2"):
        train_head(idle_model, make_batches(images, np.where(np.arange(60) == 59, 7, labels)), settings=QUIET)


def test_each_phase_refuses_the_model_of_the_other(data):
    model = build_classifier(make_tiny_backbone(), 3)
    with pytest.raises(ValueError, match="frozen as a whole: call unfreeze_top"):
        fine_tune(model, data, settings=QUIET)
    with pytest.raises(ValueError, match="frozen as a whole: call unfreeze_top"):
        fine_tune_gradually(model, data, settings=QUIET)
    unfreeze_top(model, 1)
    with pytest.raises(ValueError, match=r"2 backbone layers are unfrozen \(depthwise_2 ...\).*call freeze\(model\)"):
        train_head(model, data, settings=QUIET)
    with pytest.raises(ValueError, match="not made by build_classifier"):
        fine_tune(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]), data)


@pytest.mark.parametrize("held_out", ["batches", "features"])
def test_a_weighted_head_is_chosen_by_the_weighted_loss(held_out):
    # Eleven to one, hard to tell apart: the unweighted loss is low where everything is called the common class.
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 12 // 11
    images = rng.normal(110, 40, (240, 32, 32, 3)) + 12 * labels[:, None, None, None]
    images = np.clip(images + rng.normal(0, 12, (240, 1, 1, 1)), 0, 255).astype("float32")
    train, validation = make_batches(images[:120], labels[:120]), make_batches(images[120:], labels[120:])
    model = build_classifier(make_lively_backbone(), 2, head=build_head(2, dropout=0))
    options = {"class_weight": {0: 1 / 2, 1: 6}, "verbose": 0, "views": 1 if held_out == "features" else 0}
    history = train_head(model, train, validation, epochs=10, learning_rate=0.05, settings=Settings(**options))
    logits, truth = model.predict(validation, verbose=0).astype("float64"), labels[120:]
    shares = np.exp(logits - logits.max(1, keepdims=True))
    each = -np.log(shares / shares.sum(1, keepdims=True))[np.arange(120), truth]
    weighted = np.mean(np.array([0.5, 6])[truth] * each)
    assert weighted == pytest.approx(min(row["val_loss"] for row in history.rows), rel=1e-3)
    assert history.kept["head"] > 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_model_trained_with_class_weights_can_be_saved_and_loaded(data, tmp_path, smoothing):
    model = build_classifier(make_tiny_backbone(), 3)
    settings = Settings(verbose=0, label_smoothing=smoothing, class_weight={0: 2.0, 2: 0.5})
    train_head(model, data, epochs=1, settings=settings)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.loss.weights == [2.0, 1.0, 0.5]
    assert loaded.evaluate(data, verbose=0) == pytest.approx(model.evaluate(data, verbose=0))


@pytest.mark.parametrize("wrong", [{3: 1.0}, {0: -1.0}, {0: float("nan")}, {"a": 1.0}, [1, 2, 3], "balanced"])
def test_class_weights_that_fit_no_class_are_refused_at_once(idle_model, data, wrong):
    with pytest.raises(ValueError, match="class_weight names a weight of 0 or more by label, from 0 to 2"):
        train_head(idle_model, data, settings=Settings(verbose=0, class_weight=wrong))


def test_weighted_yes_and_no_may_be_bool(colour_pictures):
    images, labels = colour_pictures
    model = build_classifier(make_tiny_backbone(), 2, task="binary")
    settings = Settings(verbose=0, class_weight={1: 3.0})
    history = train_head(model, make_batches(images, labels > 1), epochs=1, settings=settings)
    assert np.isfinite(history.rows[0]["loss"])


def test_smoothing_is_refused_where_there_are_no_classes(colour_pictures):
    model = build_classifier(make_tiny_backbone(), 3, task="regression")
    batches = make_batches(colour_pictures[0], VALUES)
    with pytest.raises(ValueError, match="label_smoothing is for classes; this model's task is 'regression'"):
        train_head(model, batches, settings=Settings(verbose=0, label_smoothing=0.1))


def test_a_wrong_label_in_a_later_batch_of_the_validation_data_is_found_as_well(idle_model, data, colour_pictures):
    images, labels = colour_pictures
    wrong = make_batches(images, np.where(np.arange(60) == 59, 7, labels))
    with pytest.raises(ValueError, match="whole numbers from 0 to 2"):
        train_head(idle_model, data, wrong, settings=QUIET)


def test_gradual_unfreezing_that_was_stopped_opens_the_same_stages_again(data):
    class Stop(keras.utils.PyDataset):
        """Stops when it is read in the second phase."""

        def __len__(self):
            return 2

        def __getitem__(self, number):
            if len(trainable_layers(model)) > 2:
                raise KeyboardInterrupt
            return next(iter(data))

    model = build_classifier(make_tiny_backbone(), 3)
    opened = unfreeze_top(model, 2)
    with pytest.raises(KeyboardInterrupt):
        fine_tune_gradually(model, Stop(), epochs=1, settings=QUIET)
    assert trainable_layers(model) == opened


def test_a_second_fine_tuning_has_a_name_of_its_own(data):
    model = build_classifier(make_tiny_backbone(), 3)
    history = train_head(model, data, epochs=1, settings=QUIET)
    unfreeze_top(model, 1)
    for _ in range(3):
        history += fine_tune(model, data, epochs=1, settings=QUIET)
    names = ["head", "fine-tune", "fine-tune again", "fine-tune again again"]
    assert [row["phase"] for row in history.rows] == list(history.kept) == list(history.seconds) == names
    assert list(history.audits) == names and [row["epoch"] for row in history.rows] == [1, 2, 3, 4]


def test_class_weights_are_refused_where_there_are_no_classes(data):
    model = build_classifier(make_tiny_backbone(), 3, task="multi-label")
    with pytest.raises(ValueError, match="class_weight is for classes; this model's task is 'multi-label'"):
        train_head(model, data, settings=Settings(class_weight={0: 2.0}))


@pytest.mark.parametrize(
    "values",
    [
        {"label_smoothing": 1.0}, {"warmup": -0.1}, {"warmup": 1.1}, {"stage_decay": 0.0},
        {"head_factor": 0.0}, {"interpolate": 0.0}, {"interpolate": "most"}, {"patience": 0}, {"views": -1},
    ],
)  # fmt: skip
def test_settings_outside_their_range_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        Settings(**values)


# --- the history ------------------------------------------------------------------------------------------------------


def test_histories_add_up_with_epochs_counted_on(tmp_path):
    head = History(
        [{"phase": "head", "epoch": 1, "loss": 2.0}, {"phase": "head", "epoch": 2, "loss": 1.0}], {}, {"head": 2}
    )
    tuned = History([{"phase": "fine-tune", "epoch": 1, "loss": 0.5, "val_loss": 0.6}], {}, {"fine-tune": 1})
    both = head + tuned
    assert [(row["phase"], row["epoch"]) for row in both.rows] == [("head", 1), ("head", 2), ("fine-tune", 3)]
    assert both.kept == {"head": 2, "fine-tune": 1}
    assert tuned.rows[0]["epoch"] == 1
    both.to_csv(tmp_path / "history.csv")
    rows = list(csv.DictReader(open(tmp_path / "history.csv", newline="")))
    assert rows[0] == {"phase": "head", "epoch": "1", "loss": "2.0", "val_loss": ""}
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
