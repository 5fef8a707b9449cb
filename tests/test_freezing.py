import keras
import numpy as np
import pytest
from conftest import make_tiny_backbone

from tlkeras.audit import AuditReport, FreezeAudit, FreezeError
from tlkeras.backbones import Backbone, load_backbone
from tlkeras.freezing import (
    freeze,
    freeze_batch_norm,
    set_trainable_layers,
    settle_batch_norm,
    trainable_layers,
    unfreeze_top,
)
from tlkeras.heads import build_classifier

LAYERS = ("conv_0", "depthwise_0", "conv_1", "depthwise_1", "conv_2", "depthwise_2")  # those that unfreeze


@pytest.fixture
def model():
    return build_classifier(make_tiny_backbone(), 3)


def compile_model(model, learning_rate=0.01):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(learning_rate), loss)


def fit(model, colour_pictures):
    images, labels = colour_pictures
    model.fit(images.astype("float32"), labels, batch_size=30, verbose=0)


def weights_of(model, *endings):
    return {v.path: np.array(v) for v in model.weights if v.path.endswith(endings)}


def moved(before, after):
    return {path for path in before if not np.array_equal(before[path], after[path])}


@pytest.fixture
def mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy("float32")


def test_frozen_backbone_is_bit_equal_after_fit_and_the_head_is_not(model, colour_pictures):
    compile_model(model)
    audit, before = FreezeAudit(model), weights_of(model, "")
    fit(model, colour_pictures)
    assert moved(before, weights_of(model, "")) == {"logits/kernel", "logits/bias"}
    report = audit.check()
    assert (report.planned, report.moved, report.frozen) == (2, 2, len(before) - 2)
    assert str(report) == (
        "moved 2 of 2 trainable variables, 0 of 21 frozen ones, 0 batch-norm statistics; "
        "the optimizer holds exactly the trainable set"
    )


def test_batch_norm_statistics_stay_put_while_every_kernel_around_them_moves(model, colour_pictures):
    unfreeze_top(model, 3)
    compile_model(model)
    audit, before = FreezeAudit(model), weights_of(model, "")
    fit(model, colour_pictures)
    changed = moved(before, weights_of(model, ""))
    assert {f"{name}/kernel" for name in LAYERS} <= changed
    assert not any(path.startswith("norm_") for path in changed)
    assert audit.check().statistics_moved == ()


def test_the_keras_guides_recipe_moves_the_statistics_and_the_audit_says_so(colour_pictures):
    base = make_tiny_backbone().model
    base.trainable = False
    inputs = keras.Input((32, 32, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(base(inputs, training=False))
    model = keras.Model(inputs, keras.layers.Dense(3)(pooled))
    compile_model(model)
    audit = FreezeAudit(model)
    fit(model, colour_pictures)
    assert audit.check().frozen == 21  # nested models are looked into

    base.trainable = True  # "Unfreeze the base model. Note that it keeps running in inference mode."
    compile_model(model, 1e-5)
    audit, before = FreezeAudit(model), weights_of(model, "moving_mean", "moving_variance")
    fit(model, colour_pictures)
    changed = moved(before, weights_of(model, "moving_mean", "moving_variance"))
    assert len(before) == 6 and changed == set(before)
    with pytest.raises(FreezeError, match="6 frozen variables moved.*`training=False` does not prevent"):
        audit.check()
    assert set(audit.check(raise_error=False).statistics_moved) == changed


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (0, ()),
        (1, LAYERS[4:]),
        (2, LAYERS[2:]),
        (3, LAYERS),
        (np.int64(1), LAYERS[4:]),
        (0.5, LAYERS[3:]),
        (1e-6, LAYERS[5:]),
        (1.0, LAYERS),
        ("drop_1", LAYERS[4:]),
        ("drop_0", LAYERS[2:]),
    ],
)
def test_unfreeze_top_opens_just_the_layers_above_the_cut(model, stages, expected):
    unfreeze_top(model, 3)  # what was open before is frozen again
    assert unfreeze_top(model, stages) == expected
    assert trainable_layers(model) == expected
    variables = {v.path.split("/")[0] for v in model.trainable_variables}
    assert variables == {*expected, "logits"}


def test_batch_norm_opens_only_on_request(model):
    assert "norm_2" in unfreeze_top(model, 1, batch_norm=True)
    assert model.get_layer("norm_2").trainable and not model.get_layer("norm_1").trainable


@pytest.mark.parametrize("stages", ["conv_2", 4, -1, None])
def test_an_unknown_stage_is_answered_with_the_stages_there_are(model, stages):
    with pytest.raises(ValueError, match="up to 3, a share such as 0.3.* drop_0, drop_1, drop_2"):
        unfreeze_top(model, stages)


@pytest.mark.parametrize("share", [0.0, 1.5, float("nan")])
def test_a_share_outside_its_range_is_refused(model, share):
    with pytest.raises(ValueError, match="For a number of stages pass an int"):
        unfreeze_top(model, share)


def test_freeze_batch_norm_mends_a_model_that_was_unfrozen_by_hand(model, colour_pictures):
    for layer in model.layers:
        layer.trainable = True
    compile_model(model)
    assert freeze_batch_norm(model) == 3
    assert freeze_batch_norm(model) == 0
    assert trainable_layers(model) == tuple(
        layer.name for layer in model.layers if layer.weights and not layer.name.startswith(("norm", "logits"))
    )
    compile_model(model)
    audit = FreezeAudit(model)
    fit(model, colour_pictures)
    assert audit.check().statistics_moved == ()


@pytest.mark.parametrize("change", [unfreeze_top, freeze, freeze_batch_norm])
def test_fit_refuses_after_flags_changed_until_compiled_again(model, colour_pictures, change):
    for layer in model.layers:
        layer.trainable = change is not unfreeze_top
    compile_model(model)
    change(model)
    with pytest.raises(ValueError, match=r"call `compile\(\)`"):
        fit(model, colour_pictures)


def test_a_call_that_changes_no_flag_leaves_the_model_compiled(model):
    compile_model(model)
    freeze(model)
    assert model.compiled


def test_audit_raises_when_a_layer_was_frozen_without_compiling(model, colour_pictures):
    unfreeze_top(model, 1)
    compile_model(model)
    fit(model, colour_pictures)
    model.get_layer("conv_2").trainable = False
    audit = FreezeAudit(model)
    fit(model, colour_pictures)
    with pytest.raises(FreezeError, match=r"1 frozen variables moved \(conv_2/kernel\). A `trainable` flag"):
        audit.check()
    assert audit.check(raise_error=False).optimizer_extra == ("conv_2/kernel",)


def test_audit_raises_when_a_layer_was_unfrozen_without_compiling(model, colour_pictures):
    compile_model(model)
    fit(model, colour_pictures)
    model.get_layer("conv_2").trainable = True
    audit = FreezeAudit(model)
    fit(model, colour_pictures)
    with pytest.raises(FreezeError, match="lacks 1 trainable variables and holds 0 frozen ones: .* not compiled"):
        audit.check()


def test_audit_raises_when_nothing_moved(model, colour_pictures):
    compile_model(model, learning_rate=0.0)
    audit = FreezeAudit(model)
    fit(model, colour_pictures)
    with pytest.raises(FreezeError, match="No trainable variable moved"):
        audit.check()


def test_audit_refuses_a_model_whose_weights_are_still_to_come(colour_pictures):
    class Nested(keras.Model):
        def __init__(self):
            super().__init__(name="nested")
            self.base, self.head = make_tiny_backbone().model, keras.layers.Dense(3)
            self.base.trainable = False

        def call(self, x):
            return self.head(keras.ops.mean(self.base(x), axis=(1, 2)))

    late = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(3)], name="late")
    for model in (late, Nested()):  # the second holds weights, yet none that may move
        compile_model(model, 1e-4)
        with pytest.raises(ValueError, match=f"{model.name} is not built: call it on a batch, or give it an Input"):
            FreezeAudit(model)
        model(colour_pictures[0][:1].astype("float32"))
        audit = FreezeAudit(model)
        fit(model, colour_pictures)
        assert audit.check().moved == 2


def test_audit_holds_under_mixed_precision_with_its_loss_scaler(mixed_precision, colour_pictures):
    model = build_classifier(make_tiny_backbone(), 3)
    unfreeze_top(model, 1)
    compile_model(model)
    assert hasattr(model.optimizer, "inner_optimizer")
    audit = FreezeAudit(model)
    fit(model, colour_pictures)
    assert audit.check().moved == 5
    model.get_layer("conv_2").trainable = False
    assert FreezeAudit(model).check(raise_error=False).optimizer_extra == ("conv_2/kernel",)


def test_a_heads_own_batch_norm_may_move_and_the_backbones_may_not(colour_pictures):
    layers = keras.layers
    head = keras.Sequential([layers.GlobalAveragePooling2D(), layers.BatchNormalization(name="own"), layers.Dense(3)])
    model = build_classifier(make_tiny_backbone(), 3, head=head)
    compile_model(model)
    audit = FreezeAudit(model)
    before = weights_of(model, "moving_mean")
    fit(model, colour_pictures)
    assert moved(before, weights_of(model, "moving_mean")) == {"own/moving_mean"}
    assert audit.check().frozen_moved == ()


def test_live_batch_norm_passes_the_audit_only_where_the_plan_allows_it(model, colour_pictures):
    unfreeze_top(model, 1, batch_norm=True)
    compile_model(model)
    allowed, strict = FreezeAudit(model, batch_norm=True), FreezeAudit(model)
    fit(model, colour_pictures)
    statistics = ("norm_2/moving_mean", "norm_2/moving_variance")
    assert allowed.check().statistics_moved == statistics
    assert strict.check(raise_error=False).frozen_moved == statistics


def test_a_report_survives_json_and_tells_whether_it_holds():
    report = AuditReport(3, 3, 5, (), (), (), ())
    assert report.to_dict()["holds"]
    broken = AuditReport(3, 3, 5, ("conv_0/kernel",), (), (), ())
    assert not broken.to_dict()["holds"]
    assert AuditReport.from_dict({**broken.to_dict(), "frozen_moved": ["conv_0/kernel"]}) == broken


def test_models_and_layers_from_elsewhere_are_refused(model):
    with pytest.raises(ValueError, match="not made by build_classifier"):
        freeze(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))
    with pytest.raises(ValueError, match="no layers named block_9"):
        set_trainable_layers(model, ("block_9", "conv_2"))


def test_settled_statistics_are_those_of_the_pictures(colour_pictures):
    images = colour_pictures[0]
    network = make_tiny_backbone().model
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False  # frozen or not: settling is asked for by name
    others, flags = weights_of(network, "kernel"), [layer.trainable for layer in network.layers]
    settle_batch_norm(network, images)
    first = next(layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization))
    given = keras.Model(network.inputs[0], first.input).predict(images.astype("float32"), verbose=0)
    np.testing.assert_allclose(np.array(first.moving_mean), given.mean(axis=(0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(np.array(first.moving_variance), given.var(axis=(0, 1, 2)), rtol=1e-3, atol=1e-4)
    assert not moved(others, weights_of(network, "kernel")) and first.momentum == 0.99
    assert [layer.trainable for layer in network.layers] == flags


def test_the_signal_of_random_weights_no_longer_fades_once_batch_norm_is_settled():
    network = load_backbone(weights=None, alpha=0.35, image_size=64).model
    images = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3)).astype("uint8")
    faded = network.predict(images.astype("float32"), verbose=0).std()
    settle_batch_norm(network, images)
    assert faded < 1e-6 and network.predict(images.astype("float32"), verbose=0).std() > 0.1


def test_settling_refuses_a_net_without_batch_norm_and_pictures_that_are_not_raw():
    image = keras.Input((8, 8, 3))
    plain = keras.Model(image, keras.layers.Conv2D(2, 3)(image))
    with pytest.raises(ValueError, match="has no batch norm"):
        settle_batch_norm(plain, np.zeros((2, 8, 8, 3)))
    with pytest.raises(ValueError, match=r"in \[0, 255\]"):
        settle_batch_norm(make_tiny_backbone().model, np.random.default_rng(0).random((2, 32, 32, 3)))


def test_settling_drops_nothing_and_puts_the_rates_back():
    network = load_backbone("EfficientNetB0", weights=None, image_size=32).model
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3)).astype("uint8")
    rates = [layer.rate for layer in network.layers if isinstance(layer, keras.layers.Dropout)]
    settle_batch_norm(network, images)
    first = weights_of(network, "moving_variance")
    settle_batch_norm(network, images)
    assert not moved(first, weights_of(network, "moving_variance"))
    assert rates == [layer.rate for layer in network.layers if isinstance(layer, keras.layers.Dropout)] and max(rates)


def test_a_layer_of_layers_that_keras_loaded_is_as_frozen_as_before_and_opens_as_a_whole():
    """ConvNeXt's stem and downsampling are such; Keras loads what is in them frozen and themselves open."""
    inside = [
        keras.layers.Conv2D(8, 3, strides=2, name="inner_conv"),
        keras.layers.LayerNormalization(name="inner_norm"),
    ]
    image = keras.Input((32, 32, 3), name="image")
    x = keras.layers.Identity(name="augmentation")(image)
    x = keras.Sequential(inside, name="stem")(x)
    x = keras.layers.Conv2D(8, 3, strides=2, name="end")(x)
    backbone = Backbone("Nested", keras.Model(image, x), "random", 32, ("stem", "end"), 8)
    fresh, loaded = (build_classifier(backbone, 3) for _ in range(2))
    stem = loaded.get_layer("stem")
    stem._trainable = True  # what Keras's Sequential.from_config leaves
    assert not any(layer.trainable for layer in stem.layers) and trainable_layers(loaded) == ()
    for model in (fresh, loaded):
        assert unfreeze_top(model, 2) == ("stem", "end") == trainable_layers(model)
    assert len(loaded.trainable_weights) == len(fresh.trainable_weights) == 8
    freeze(loaded)
    assert trainable_layers(loaded) == () and len(loaded.trainable_weights) == 2
