import keras
import numpy as np
import pytest
from test_features import Pictures

from tlkeras.codes import LocalResponseNormalization, load_codes
from tlkeras.features import extract_features


@pytest.fixture(scope="module")
def alexnet():
    """One net of 57 million weights for all that only look at it, from another seed than what a test makes itself."""
    keras.utils.set_random_seed(1)
    return load_codes("AlexNet", weights=None)


def test_alexnet_has_the_papers_layout(alexnet):
    shapes = {name: alexnet.model.get_layer(name).output.shape[1:] for name in (*alexnet.stages, "conv1", "conv2")}
    assert shapes["conv1"] == (55, 55, 96) and shapes["pool1"] == (27, 27, 96) and shapes["conv2"] == (27, 27, 256)
    assert shapes["pool2"] == (13, 13, 256) and shapes["conv4"] == (13, 13, 384) and shapes["pool5"] == (6, 6, 256)
    # 60,965,224 weights are known for the net of two groups; 4,097,000 of them belong to its thousand classes.
    assert alexnet.model.count_params() == 60_965_224 - 4_097_000


def test_codes_are_4096_numbers_before_and_after_the_relu(alexnet):
    images = np.random.default_rng(0).uniform(0, 255, (3, 227, 227, 3)).astype("float32")
    codes = extract_features(alexnet, Pictures(images, np.zeros(3, int)), stages=("fc1", "fc2", "fc2_relu")).stages
    assert codes["fc1"].shape == codes["fc2"].shape == (3, 4096)
    assert codes["fc2"].min() < 0 <= codes["fc2_relu"].min()
    np.testing.assert_allclose(codes["fc2_relu"], np.maximum(codes["fc2"], 0), atol=1e-5)


def test_response_normalisation_equals_the_papers_formula_written_out():
    x = np.random.default_rng(0).normal(size=(1, 2, 2, 8)) * 100
    expected = np.empty_like(x)
    for channel in range(8):
        near = x[..., max(0, channel - 2) : channel + 3]
        expected[..., channel] = x[..., channel] / (2 + 1e-4 * (near**2).sum(axis=-1)) ** 0.75
    found = LocalResponseNormalization()(x.astype("float32"))
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-5)


def test_weights_of_a_file_come_back(alexnet, tmp_path):
    saved = alexnet.model
    saved.save_weights(tmp_path / "alex.weights.h5")
    loaded = load_codes("AlexNet", weights=tmp_path / "alex.weights.h5")
    np.testing.assert_array_equal(loaded.model.get_layer("conv1").kernel, saved.get_layer("conv1").kernel)
    np.testing.assert_array_equal(loaded.model.get_layer("fc2").bias, saved.get_layer("fc2").bias)


def test_what_is_not_to_be_had_is_said():
    with pytest.raises(ValueError, match="'VGG16', 'VGG19', 'AlexNet', got 'ResNet50'"):
        load_codes("ResNet50")
    with pytest.raises(ValueError, match="no weights for AlexNet"):
        load_codes("AlexNet")


@pytest.mark.slow
def test_vgg16_is_keras_applications_with_its_relu_apart(tmp_path):
    whole = keras.applications.VGG16(weights=None)
    whole.save_weights(tmp_path / "vgg.weights.h5")
    backbone = load_codes("VGG16", weights=None)
    assert backbone.model.count_params() == 138_357_544 - 4_097_000
    for layer in backbone.model.layers:
        if layer.weights:
            layer.set_weights(whole.get_layer(layer.name).get_weights())
    images = np.random.default_rng(0).uniform(0, 255, (2, 224, 224, 3)).astype("float32")
    expected = keras.Model(whole.inputs[0], whole.get_layer("fc2").output)(
        keras.applications.vgg16.preprocess_input(images.copy())
    )
    np.testing.assert_allclose(backbone.model(images), expected, rtol=1e-3, atol=1e-5)


def test_response_normalisation_of_large_values_in_half_precision_is_that_in_full():
    x = np.full((1, 1, 1, 8), 300.0, "float32")  # the square of 256 is more than float16 holds
    half, full = LocalResponseNormalization(dtype="mixed_float16")(x), LocalResponseNormalization()(x)
    np.testing.assert_allclose(np.asarray(half, "float32"), np.asarray(full), rtol=1e-2)
    assert "float16" in str(half.dtype)
