import json

import keras
import numpy as np
import pytest
from conftest import make_tiny_backbone

from tlkeras.backbones import load_backbone
from tlkeras.engines import compute_precision
from tlkeras.freezing import unfreeze_top
from tlkeras.heads import Augmentation, Transfer, build_classifier, build_head


@keras.saving.register_keras_serializable("test_heads")
class Invert(keras.layers.Layer):
    """An augmentation without chance: a test can tell exactly whether it acted."""

    def call(self, images):
        return 255.0 - images


@pytest.fixture
def pictures(colour_pictures):
    return colour_pictures[0].astype("float32")


def test_the_graph_is_flat_from_pictures_to_logits(tiny_backbone, pictures):
    model = build_classifier(tiny_backbone, 3)
    assert not any(isinstance(layer, keras.Model) for layer in model.layers)
    assert model.get_layer("conv_2").output.shape == (None, 4, 4, 16)
    assert model.predict(pictures, verbose=0).shape == (60, 3)
    assert model.transfer.head_layers == ("pool", "dropout", "logits")
    assert model.transfer.backbone_layers[0] == "preprocess_rescaling"
    assert model.transfer.backbone_layers[-1] == model.transfer.stages[-1] == "drop_2"


def test_only_the_head_trains_in_a_new_classifier(tiny_backbone):
    model = build_classifier(tiny_backbone, 3, head=build_head(3, hidden=(8,)))
    names = {v.path for v in model.trainable_variables}
    assert names == {"hidden_1/kernel", "hidden_1/bias", "logits/kernel", "logits/bias"}


def test_training_a_classifier_leaves_its_backbone_bit_equal(tiny_backbone, colour_pictures):
    before = tiny_backbone.model.get_weights()
    model = build_classifier(tiny_backbone, 3)
    unfreeze_top(model, 3, batch_norm=True)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(*colour_pictures, verbose=0)
    assert not np.array_equal(model.get_layer("conv_0").get_weights()[0], before[0])
    for old, new in zip(before, tiny_backbone.model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert tiny_backbone.model.get_layer("conv_0").trainable


def test_a_classifier_starts_from_the_backbones_weights_and_statistics(tiny_backbone, pictures):
    for weight in tiny_backbone.model.weights:
        weight.assign(np.random.default_rng(0).uniform(0.1, 1, weight.shape))
    model = build_classifier(tiny_backbone, 3)
    features = keras.Model(model.inputs[0], model.get_layer("drop_2").output)
    np.testing.assert_array_equal(features(pictures), tiny_backbone.model(pictures))


@pytest.mark.parametrize(("stage", "kept"), [("drop_1", 2), (1, 2), (-2, 2), (0, 1), (-1, 3), (None, 3)])
def test_stage_sets_the_head_on_that_cut_and_leaves_out_what_is_above(tiny_backbone, stage, kept):
    model = build_classifier(tiny_backbone, 3, stage=stage)
    assert model.transfer.stages == ("drop_0", "drop_1", "drop_2")[:kept]
    assert model.transfer.backbone_layers[-1] == f"drop_{kept - 1}"
    assert model.get_layer("pool").output.shape == (None, (8, 12, 16)[kept - 1])
    assert {layer.name for layer in model.layers if layer.name.startswith("conv")} == {f"conv_{k}" for k in range(kept)}


@pytest.mark.parametrize("stage", ["conv_1", 3, -4])
def test_an_unknown_stage_is_answered_with_the_stages_there_are(tiny_backbone, stage):
    with pytest.raises(ValueError, match=f"Tiny has no stage {stage!r}. Its 3 stages are: drop_0, drop_1, drop_2"):
        build_classifier(tiny_backbone, 3, stage=stage)


@pytest.mark.parametrize(
    ("task", "num_classes", "outputs"),
    [("classification", 2, 2), ("binary", 2, 1), ("multi-label", 5, 5), ("multi-label", 1, 1), ("regression", 1, 1)],
)
def test_each_task_has_its_number_of_outputs(tiny_backbone, pictures, task, num_classes, outputs):
    model = build_classifier(tiny_backbone, num_classes, task=task)
    assert model.predict(pictures[:2], verbose=0).shape == (2, outputs)
    assert model.transfer.task == task


def test_what_fits_no_task_is_refused(tiny_backbone):
    with pytest.raises(ValueError, match="task must be one of 'classification', 'binary', .*got 'ranking'"):
        build_classifier(tiny_backbone, 3, task="ranking")
    with pytest.raises(ValueError, match="2 or more classes, got 1. Is it task='binary'"):
        build_classifier(tiny_backbone, 1)
    with pytest.raises(TypeError, match="load_backbone"):
        build_classifier(tiny_backbone.model, 3)


@pytest.mark.parametrize(
    "head",
    [
        keras.layers.Dense(3),
        keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(4)]),
    ],
)
def test_a_head_with_the_wrong_outputs_is_refused(tiny_backbone, head):
    with pytest.raises(ValueError, match=r"The head gives .*; task 'classification' wants \(None, 3\)"):
        build_classifier(tiny_backbone, 3, head=head)


def test_any_layer_can_be_the_head(tiny_backbone, pictures):
    inputs = keras.Input((4, 4, 16))
    pooled = keras.layers.GlobalMaxPooling2D()(keras.layers.Conv2D(8, 1)(inputs))
    head = keras.Model(inputs, keras.layers.Dense(3)(pooled), name="own")
    model = build_classifier(tiny_backbone, 3, head=head)
    assert model.transfer.head_layers == ("own",)
    assert len(model.trainable_variables) == 4
    assert model.predict(pictures[:2], verbose=0).shape == (2, 3)


def test_a_head_is_copied_with_its_weights_so_that_two_models_share_nothing(tiny_backbone):
    head = keras.Sequential([keras.Input((4, 4, 16)), keras.layers.GlobalMaxPooling2D(), keras.layers.Dense(3)])
    models = [build_classifier(tiny_backbone, 3, head=head) for _ in range(2)]
    (name,) = [name for name in models[0].transfer.head_layers if models[0].get_layer(name).weights]
    first, second = (model.get_layer(name) for model in models)
    np.testing.assert_array_equal(first.kernel, head.layers[-1].kernel)
    first.kernel.assign(first.kernel + 1)
    np.testing.assert_array_equal(second.kernel, head.layers[-1].kernel)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ["pool", "dropout", "logits"]),
        ({"dropout": 0}, ["pool", "logits"]),
        ({"hidden": (64, 32), "pooling": "flatten"}, ["pool", "hidden_1", "hidden_2", "dropout", "logits"]),
    ],
)
def test_build_head_has_the_layers_asked_for(options, names):
    head = build_head(3, **options)
    assert [layer.name for layer in head.layers] == names
    assert head(np.ones((2, 4, 4, 8), "float32")).shape == (2, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_outputs": 0}, "num_outputs must be a whole number of at least 1, got 0"),
        ({"num_outputs": 2.5}, "num_outputs must be a whole number"),
        ({"num_outputs": "3"}, "num_outputs must be a whole number"),
        ({"hidden": (64, 0)}, "hidden must be a whole number of at least 1, got 0"),
        ({"hidden": 64}, r"such as \(256,\), got 64"),
        ({"dropout": 1.0}, r"dropout must be a number in \[0, 1\), got 1.0"),
        ({"pooling": "mean"}, "pooling must be one of 'avg', 'max', 'flatten', got 'mean'"),
    ],
)
def test_build_head_says_what_it_takes(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_head(**{"num_outputs": 3, **arguments})


def test_augmentation_acts_in_fit_and_nowhere_else(tiny_backbone, colour_pictures):
    for weight in tiny_backbone.model.trainable_weights:
        weight.assign(4 * weight)  # so that the features, and with them the losses, differ clearly
    images, labels = colour_pictures[0].astype("float32"), colour_pictures[1]
    plain = build_classifier(tiny_backbone, 3, head=build_head(3, dropout=0))
    model = build_classifier(tiny_backbone, 3, head=build_head(3, dropout=0), augmentation=Invert())
    model.set_weights(plain.get_weights())
    np.testing.assert_array_equal(model(images), plain(images))
    np.testing.assert_array_equal(model.predict(images, verbose=0), plain.predict(images, verbose=0))
    for each in (model, plain):
        each.compile(keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    as_they_are, inverted = (plain.evaluate(each, labels, verbose=0) for each in (images, 255 - images))
    assert abs(as_they_are - inverted) > 1e-3
    assert model.evaluate(images, labels, verbose=0) == pytest.approx(as_they_are, abs=1e-6)
    assert model.fit(images, labels, verbose=0).history["loss"] == pytest.approx([inverted], abs=1e-5)


def test_kerass_own_augmentation_layers_are_still_until_training(tiny_backbone, pictures):
    flip = keras.Sequential([keras.layers.RandomFlip(), keras.layers.RandomTranslation(0.3, 0.3)])
    model = build_classifier(tiny_backbone, 3, augmentation=flip)
    layer = model.get_layer("augmentation")
    np.testing.assert_array_equal(layer(pictures), pictures)
    assert np.abs(np.asarray(layer(pictures, training=True)) - pictures).max() > 1


def test_dropout_inside_the_backbone_is_off_even_in_training(tiny_backbone, pictures):
    model = build_classifier(tiny_backbone, 3, head=build_head(3, dropout=0))
    np.testing.assert_array_equal(model(pictures, training=True), model(pictures, training=False))
    assert tiny_backbone.model.get_layer("drop_1").rate == 0.5


def test_a_saved_classifier_gives_the_same_answers_and_still_augments(tiny_backbone, pictures, tmp_path):
    steps = keras.Sequential([Invert(), keras.layers.RandomFlip("horizontal")])
    model = build_classifier(tiny_backbone, 3, augmentation=steps)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(pictures, verbose=0), model.predict(pictures, verbose=0))
    augmented = np.asarray(loaded.get_layer("augmentation")(pictures, training=True))
    assert augmented.mean() == pytest.approx(255 - pictures.mean(), rel=1e-5)
    assert not loaded.get_layer("conv_0").trainable


def test_mixed_precision_computes_the_backbone_in_float16_and_ends_in_float32(pictures):
    backbone = make_tiny_backbone()  # loaded in float32, built for the policy in force
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = build_classifier(backbone, 3, augmentation=keras.layers.RandomFlip())
    finally:
        keras.config.set_dtype_policy("float32")
    compute = {layer.name: layer.compute_dtype for layer in model.layers}
    assert {compute[name] for name in ("conv_0", "norm_0", "relu_0", "depthwise_2", "pool")} == {"float16"}
    assert {compute[name] for name in ("augmentation", "preprocess_rescaling", "logits")} == {"float32"}
    assert {v.dtype for v in model.weights} == {"float32"}
    assert model.predict(pictures, verbose=0).dtype == "float32"


def test_a_grey_backbone_takes_grey_pictures(pictures):
    backbone = load_backbone("MobileNetV2", weights=None, image_size=32, alpha=0.35, channels=1)
    model = build_classifier(backbone, 3)
    assert model.predict(pictures[:2, ..., :1], verbose=0).shape == (2, 3)


def test_a_backbone_without_a_place_for_augmentation_is_refused(tiny_backbone):
    inputs = keras.Input((32, 32, 3))
    net = keras.Model(inputs, keras.layers.Conv2D(4, 3, name="end")(inputs))
    with pytest.raises(ValueError, match="first layer must be named 'augmentation'"):
        build_classifier(type(tiny_backbone)("Own", net, "random", 32, ("end",), 4), 2)


def test_transfer_survives_json(tiny_backbone):
    transfer = build_classifier(tiny_backbone, 3).transfer
    assert Transfer.from_dict(json.loads(json.dumps(transfer.to_dict()))) == transfer


def test_an_augmentation_without_layers_changes_nothing(pictures):
    np.testing.assert_array_equal(Augmentation()(pictures, training=True), pictures)


@pytest.mark.parametrize(
    "name", ["VGG16", "ResNet50", "MobileNetV3Small", "ConvNeXtTiny", "EfficientNetB0", "NASNetMobile"]
)
def test_a_classifier_on_each_kind_of_net_gives_the_backbones_features(name):
    from tlkeras.backbones import load_backbone

    backbone = load_backbone(name, weights=None, image_size=64)
    model = build_classifier(backbone, 3)
    pictures = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype("float32")
    cut = keras.Model(model.inputs[0], model.get_layer(backbone.stages[-1]).output)
    expected = np.asarray(backbone.model(pictures, training=False))
    np.testing.assert_allclose(np.asarray(cut(pictures, training=False)), expected, rtol=1e-4, atol=1e-5)
    assert len(model.trainable_variables) == 2


@pytest.mark.parametrize(
    ("task", "last"),
    [
        ("classification", keras.layers.Dense(3, activation="softmax")),
        ("multi-label", keras.layers.Dense(3, activation="sigmoid")),
        ("classification", keras.Sequential([keras.layers.Dense(3), keras.layers.Softmax()])),
        ("classification", keras.Sequential([keras.layers.Dense(3), keras.layers.Activation("softmax")])),
    ],
    ids=["softmax", "sigmoid", "a layer of its own", "an activation of its own"],
)
@pytest.mark.parametrize("form", ["flat", "functional", "nested"])
def test_a_head_that_gives_probabilities_is_refused(tiny_backbone, task, last, form):
    layers = last.layers if isinstance(last, keras.Sequential) else [last]
    features = keras.Input(tiny_backbone.model.output_shape[1:])
    head = keras.Sequential([keras.layers.GlobalAveragePooling2D(), *layers])
    if form == "functional":
        head = keras.Model(features, head(features))
    elif form == "nested":
        head = keras.Sequential([head])
    with pytest.raises(ValueError, match="ends in probabilities .* let its last layer have no activation"):
        build_classifier(tiny_backbone, 3, task=task, head=head)
    if task == "multi-label":  # shares as values are a fair thing to predict
        assert build_classifier(tiny_backbone, 3, task="regression", head=head).transfer.task == "regression"


def test_layers_in_blocks_compute_in_the_precision_in_force():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        backbone = load_backbone("ConvNeXtTiny", weights=None, image_size=32)
    finally:
        keras.config.set_dtype_policy(before)
    assert compute_precision(backbone.model) == "bfloat16"
    model = build_classifier(backbone, 3)
    assert {layer.compute_dtype for layer in model._flatten_layers() if layer.weights} == {"float32"}
