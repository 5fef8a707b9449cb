from __future__ import annotations

import sys

import keras
import numpy as np
import pytest

keras_hub = pytest.importorskip("keras_hub")

from tlkeras.backbones import load_backbone  # noqa: E402
from tlkeras.features import extract_features  # noqa: E402
from tlkeras.freezing import unfreeze_top  # noqa: E402
from tlkeras.heads import build_classifier  # noqa: E402
from tlkeras.loaders import load_arrays  # noqa: E402
from tlkeras.settings import Settings  # noqa: E402
from tlkeras.training import fine_tune, train_head  # noqa: E402
from tlkeras.zoo import save_backbone  # noqa: E402

SIZE = 64
MEAN, DEVIATION = np.array([123.7, 116.3, 103.5]), np.array([58.4, 57.1, 57.4])


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """A small ResNet as KerasHub saves one, with its image converter; and the net itself."""
    folder = tmp_path_factory.mktemp("presets") / "tiny-resnet"
    keras.utils.set_random_seed(0)
    net = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64], input_conv_kernel_sizes=[7], stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1], stackwise_num_strides=[1, 2], block_type="basic_block",
    )  # fmt: skip
    net.save_to_preset(str(folder))
    converter = keras_hub.models.ResNetImageClassifierPreprocessor.image_converter_cls(
        image_size=(SIZE, SIZE), scale=list(1 / DEVIATION), offset=list(-MEAN / DEVIATION)
    )
    converter.save_to_preset(str(folder))
    return f"hub:{folder}", net


@pytest.fixture(scope="module")
def backbone(preset):
    return load_backbone(preset[0])


@pytest.fixture
def pictures():
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 2
    images = rng.integers(0, 120, (24, SIZE, SIZE, 3))
    images[np.arange(24), :, :, labels] += 80
    return images.astype("float32"), labels


def test_raw_pictures_get_the_features_that_the_preset_gives_to_prepared_ones(preset, backbone, pictures):
    images = pictures[0]
    wanted = np.asarray(preset[1]((images - MEAN.astype("float32")) / DEVIATION.astype("float32"), training=False))
    got = backbone.model.predict_on_batch(images)
    np.testing.assert_allclose(got, wanted, atol=1e-4 * np.abs(wanted).max())


def test_name_size_and_stages_come_from_the_preset(preset, backbone):
    assert (backbone.name, backbone.image_size, backbone.num_features) == ("tiny_resnet", SIZE, 64)
    pyramid = [tensor._keras_history.operation.name for tensor in preset[1].pyramid_outputs.values()]
    assert list(backbone.stages) == pyramid and len(pyramid) == 2
    assert load_backbone(preset[0], image_size=96).model.input_shape == (None, 96, 96, 3)


def test_weights_none_are_random_ones(preset, backbone):
    keras.utils.set_random_seed(1)  # the preset was made from seed 0
    other = load_backbone(preset[0], weights=None)
    assert not np.array_equal(other.model.get_weights()[0], backbone.model.get_weights()[0])
    assert (other.weights, backbone.weights) == ("random", "preset")


def test_both_engines_give_the_same_features(backbone, pictures):
    data = load_arrays(*pictures).ordered("train")
    by_keras = extract_features(backbone, data, stages="all", engine="keras")
    pytest.importorskip("openvino")
    by_openvino = extract_features(backbone, data, stages="all", engine="openvino")
    for name in backbone.stages:
        np.testing.assert_allclose(by_openvino.stages[name], by_keras.stages[name], rtol=1e-3, atol=1e-4)


def test_head_and_top_stage_train_and_nothing_else_moves(backbone, pictures):
    data, settings = load_arrays(*pictures, batch_size=8), Settings(verbose=0, patience=None)
    model = build_classifier(backbone, 2)
    before = {layer.name: layer.get_weights() for layer in model.layers}
    train_head(model, data.train, data.validation, epochs=20, learning_rate=0.03, settings=settings)
    unfreeze_top(model, 1)
    history = fine_tune(model, data.train, data.validation, epochs=1, learning_rate=1e-3, settings=settings)
    assert "0 batch-norm" in str(history.audits["fine-tune"])
    depth = model.transfer.backbone_layers.index(backbone.stages[0])
    for number, name in enumerate(model.transfer.backbone_layers):
        pairs = zip(before[name], model.get_layer(name).get_weights(), strict=True)
        moved = any(not np.array_equal(a, b) for a, b in pairs)
        assert not moved or (number > depth and "bn" not in name)
    assert model.evaluate(data.train, verbose=0)[1] > 0.8  # chance is 0.5


def test_a_net_that_hides_batch_norm_is_refused(tmp_path):
    net = keras_hub.models.MobileNetBackbone(
        stackwise_expansion=[[16]], stackwise_num_blocks=[1], stackwise_num_filters=[[16]], stackwise_kernel_size=[[3]],
        stackwise_num_strides=[[2]], stackwise_se_ratio=[[None]], stackwise_activation=[["relu"]],
        stackwise_padding=[[1]], output_num_filters=32, depthwise_filters=8, depthwise_stride=2,
        depthwise_residual=False, last_layer_filter=32,
    )  # fmt: skip
    net.save_to_preset(str(tmp_path))
    keras_hub.layers.MobileNetImageConverter(image_size=(SIZE, SIZE)).save_to_preset(str(tmp_path))
    with pytest.raises(ValueError, match="inside a layer of its own, where freezing cannot reach it"):
        load_backbone(f"hub:{tmp_path}", weights=None)


def test_arguments_that_a_preset_has_no_use_for_are_refused(preset, tmp_path, backbone):
    with pytest.raises(ValueError, match="leave alpha and channels out"):
        load_backbone(preset[0], alpha=0.5)
    with pytest.raises(ValueError, match="brings its own weights"):
        load_backbone(preset[0], weights="embedded")
    with pytest.raises(ValueError, match="no image converter that can be read"):
        load_backbone(f"hub:{tmp_path}")
    with pytest.raises(ValueError, match="save_to_preset"):
        save_backbone(tmp_path / "mine", backbone, about={})


def test_without_keras_hub_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(ImportError, match="pip install keras-hub"):
        load_backbone("hub:resnet_18_imagenet")
