"""Every net of the catalogue: its preprocessing, its stages, its names."""

from __future__ import annotations

from types import ModuleType

import keras
import numpy as np
import pytest

from tlkeras.backbones import Backbone, list_backbones, load_backbone, stage_model
from tlkeras.catalogue import CATALOGUE

# More than 60 million weights, or seconds to build (the first EfficientNets are built twice: `_fix_normalization`).
SLOW = {name for name, entry in CATALOGUE.items() if entry.num_weights > 60e6} | {
    *("EfficientNetB3", "EfficientNetB4", "EfficientNetB5", "EfficientNetB6", "EfficientNetV2M"),
    *("DenseNet201", "InceptionResNetV2", "ResNet152", "ResNet152V2"),
}
TORCH = ("EfficientNetB", "EfficientNetV2B", "ConvNeXt")


@pytest.fixture(scope="module", params=[pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in CATALOGUE])
def net(request) -> Backbone:
    """One build of each net, shared by the tests below: pytest runs them net by net."""
    return load_backbone(request.param, weights=None, image_size=CATALOGUE[request.param].min_size)


@pytest.fixture
def small() -> Backbone:
    return load_backbone(weights=None, image_size=32, alpha=0.35)


def pictures(size: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (2, size, size, channels)).astype("float32")


def own_module(name: str) -> ModuleType:
    if name.startswith("MobileNetV3"):
        return keras.applications.mobilenet_v3
    modules = [module for module in vars(keras.applications).values() if isinstance(module, ModuleType)]
    return next(module for module in modules if hasattr(module, name) and hasattr(module, "preprocess_input"))


def reaches_input_without(model: keras.Model, stage: str) -> bool:
    """Walk from the output towards the input, never through the stage's tensor."""
    barrier, seen, todo = id(model.get_layer(stage).output), set(), [model.output]
    while todo:
        tensor = todo.pop()
        if id(tensor) == barrier or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        operation, node, _ = tensor._keras_history
        inputs = operation._inbound_nodes[node].input_tensors
        if not inputs:
            return True
        todo += inputs
    return False


# --- every net of the catalogue --------------------------------------------------------------------------------------


def test_catalogue_holds_every_classifier_of_keras_applications():
    assert list_backbones() == [name for name in dir(keras.applications) if name[0].isupper()]
    assert len(list_backbones()) == 40


def test_net_has_the_weights_that_the_catalogue_says(net):
    entry = CATALOGUE[net.name]
    assert net.model.count_params() == entry.num_weights and 60 < entry.top1 < 90
    layers = net.model._flatten_layers()
    assert any(isinstance(layer, keras.layers.BatchNormalization) for layer in layers) == entry.batch_norm


def test_preprocessing_is_that_of_keras(net):
    size, entry, picture = net.image_size, CATALOGUE[net.name], pictures(net.image_size)
    expected = own_module(net.name).preprocess_input(picture.copy())
    kinds = (keras.layers.Rescaling, keras.layers.Normalization)
    scaling = [layer for layer in net.model.layers if isinstance(layer, kinds) and layer.output.shape[-1] == 3][-1]
    if entry.preprocessing == "none":  # Keras's function passes pictures on: the net itself holds the scaling
        assert np.array_equal(expected, picture)
        if net.name.startswith(TORCH):
            expected = keras.applications.imagenet_utils.preprocess_input(picture.copy(), mode="torch")
        else:
            expected = picture / (128 if net.name.startswith("EfficientNetV2") else 127.5) - 1
    got = keras.Model(net.model.input, scaling.output)(picture)
    assert got.shape == (2, size, size, 3)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4 if entry.preprocessing == "caffe" else 1e-5)


def test_every_stage_cuts_the_graph_in_two(net):
    for stage in net.stages:
        assert not reaches_input_without(net.model, stage), stage
    assert reaches_input_without(net.model, "image") is False
    assert net.model.get_layer(net.stages[-1]).output is net.model.output


def test_stages_are_in_order_with_weights_between_them(net):
    names = [layer.name for layer in net.model.layers]
    places = [0, *(names.index(stage) for stage in net.stages)]
    assert places == sorted(set(places))
    for start, end in zip(places, places[1:], strict=False):
        assert any(layer.weights for layer in net.model.layers[start + 1 : end + 1]), names[end]
    if not net.name.startswith("NASNet"):
        assert 5 <= len(net.stages) <= 7
        return
    # Its cells read the two cells before them, so between its stem and its end there is no point to cut it at.
    stem, end = places[1:]
    between = [name for name in names[stem + 1 : end] if not reaches_input_without(net.model, name)]
    assert between == [names[end - 1]]  # what the last ReLU takes


def test_net_maps_raw_pictures_to_features(net):
    assert net.model.input_shape == (None, net.image_size, net.image_size, 3)
    assert net.model.output_shape[-1] == net.num_features
    nested = [layer for layer in net.model.layers if isinstance(layer, keras.Model)]  # ConvNeXt: pairs of layers
    assert all(isinstance(layer, keras.Sequential) and net.name.startswith("ConvNeXt") for layer in nested)


# --- one net, closely ------------------------------------------------------------------------------------------------


def test_the_graph_walk_sees_a_way_round(small):
    assert reaches_input_without(small.model, "block_2_project_BN")


@pytest.mark.parametrize("name", ["MobileNetV3Small", "Xception", "ConvNeXtTiny"])
def test_two_nets_in_one_process_have_the_same_layer_names(name):
    first, second = (load_backbone(name, weights=None, image_size=size) for size in (75, 96))
    assert [layer.name for layer in first.model.layers] == [layer.name for layer in second.model.layers]


@pytest.mark.parametrize("alpha", [0.35, 1.4])
def test_stages_do_not_depend_on_width_or_size(alpha):
    backbone = load_backbone(weights=None, image_size=64, alpha=alpha)
    assert backbone.alpha == alpha
    assert load_backbone(weights=None, image_size=64, alpha=np.float32(alpha)).alpha == alpha
    assert all(not reaches_input_without(backbone.model, stage) for stage in backbone.stages)
    assert backbone.model.count_params() == CATALOGUE["MobileNetV2"].widths[alpha].num_weights


@pytest.mark.parametrize("name", ["VGG16", "EfficientNetB0", "ConvNeXtTiny"])
def test_saved_or_cloned_net_gives_the_same_features(name, tmp_path):
    backbone = load_backbone(name, weights=None, image_size=32)
    backbone.model.save(tmp_path / "net.keras")
    loaded = keras.models.load_model(tmp_path / "net.keras")  # safe mode is the default
    clone = keras.models.clone_model(backbone.model)
    clone.set_weights(backbone.model.get_weights())
    for copy in (loaded, clone):
        np.testing.assert_array_equal(copy(pictures(32)), backbone.model(pictures(32)))


def test_grey_pictures_give_what_three_equal_channels_give(small):
    grey = load_backbone(weights=None, image_size=32, alpha=0.35, channels=1)
    grey.model.set_weights(small.model.get_weights())
    picture = pictures(32, channels=1)
    np.testing.assert_allclose(grey.model(picture), small.model(np.repeat(picture, 3, axis=-1)), atol=1e-6)


def test_stage_model_gives_one_map_per_stage_in_the_order_asked_for(small):
    assert len(stage_model(small).outputs) == len(small.stages) == 7
    late, early = stage_model(small, ["block_12_add", "block_2_add"])(pictures(32))
    assert late.shape[1] == 2 and early.shape[1] == 8
    with pytest.raises(ValueError, match="block_5_add"):
        stage_model(small, ["block_99_add"])


# --- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "mobilenetv2"}, "did you mean MobileNetV2"),
        ({"name": "Transformer"}, "list_backbones"),
        ({"name": "Xception", "image_size": 64}, "at least 71 pixels"),
        ({"name": "ResNet50", "alpha": 0.5}, "no width.*MobileNetV2"),
        ({"alpha": 0.6}, "0.35, 0.5, 0.75"),
        ({"alpha": -1, "weights": None}, r"alpha must be a number in \(0, inf\), got -1"),
        ({"alpha": "0.35"}, "alpha must be a number in .* got '0.35'"),
        ({"image_size": 96.0}, "image_size must be a whole number, got 96.0"),
        ({"channels": 4}, "3 .RGB. or 1"),
        ({"name": "ResNet50", "weights": "embedded"}, "for MobileNetV2 at alpha 0.35"),
    ],
)
def test_wrong_arguments_are_refused_with_the_way_on(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_backbone(**arguments)
