"""Where weights come from, and what is said when they are not to be had."""

from __future__ import annotations

import logging
import shutil
import socket
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from test_backbones import own_module, pictures

from tlkeras import weights
from tlkeras.backbones import Backbone, load_backbone
from tlkeras.weights import WeightsNotFoundError, weights_in_reach

SHARED = Path(__file__).parents[2] / "shared" / "keras_home"
needs_weights = pytest.mark.skipif(not SHARED.is_dir(), reason="genuine ImageNet weights are not on this machine")


@pytest.fixture
def small() -> Backbone:
    return load_backbone(weights=None, image_size=32, alpha=0.35)


@pytest.fixture
def offline(monkeypatch, tmp_path) -> Path:
    """No network and an empty Keras cache; its folder for weights."""

    def refuse(*args, **kwargs):
        raise OSError("the network is cut")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


@needs_weights
@pytest.mark.parametrize(("name", "alpha"), [("MobileNetV2", 0.35), ("MobileNet", 0.25)])
def test_imagenet_weights_give_what_keras_gives(name, alpha, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(SHARED))
    backbone = load_backbone(name, alpha=alpha)
    own = getattr(keras.applications, name)(
        alpha=alpha, include_top=False, weights=str(weights_in_reach(name, alpha)), input_shape=(224, 224, 3)
    )
    expected = own.predict(own_module(name).preprocess_input(pictures(224)), verbose=0)
    difference = np.abs(backbone.model.predict(pictures(224), verbose=0) - expected).max()
    assert difference < 1e-5 * np.abs(expected).max() and np.abs(expected).max() > 1


@needs_weights
def test_imagenet_weights_serve_another_image_size(offline, caplog):
    shutil.copy(next((SHARED / "models").glob("*v2*0.35*no_top*")), offline)
    backbone = load_backbone(alpha=0.35, image_size=160)
    assert backbone.model.output_shape == (None, 5, 5, 1280)
    assert "another image size" in caplog.text


@needs_weights
def test_a_file_tells_its_own_width():
    path = next((SHARED / "models").glob("*v2*0.35*no_top*"))
    backbone = load_backbone(weights=path, image_size=96)
    assert backbone.alpha == 0.35 and backbone.weights == str(path)


def test_without_network_the_error_says_what_where_and_what_next(offline, capsys):
    began = time.perf_counter()
    with pytest.raises(WeightsNotFoundError) as raised:
        load_backbone("ResNet50", image_size=32)
    text = str(raised.value)
    assert "https://storage.googleapis.com/" in text and "the network is cut" in text
    assert str(offline / "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5") in text
    assert 'weights="embedded"' in text and "weights=PATH" in text and "KERAS_HOME" in text
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
    assert capsys.readouterr().out == "" and time.perf_counter() - began < 5


def test_a_name_server_that_never_answers_does_not_hang(offline, monkeypatch):
    monkeypatch.setattr(weights, "_PROBE_SECONDS", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: time.sleep(2))
    began = time.perf_counter()
    with pytest.raises(WeightsNotFoundError, match="no answer in 0.2 seconds"):
        load_backbone("ResNet50", image_size=32)
    assert time.perf_counter() - began < 1.5


def embedded_file(path: Path, backbone: Backbone) -> Path:
    variables = backbone.model.weights
    arrays = {f"{k:03d} {v.path}": v.numpy().astype("float16") for k, v in enumerate(variables)}
    np.savez(path, **arrays)
    return path


def test_embedded_weights_come_back_in_order(small, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "EMBEDDED_FILE", embedded_file(tmp_path / "embedded.npz", small))
    backbone = load_backbone(weights="embedded", image_size=32)
    assert (backbone.weights, backbone.alpha) == ("embedded", 0.35)
    for got, expected in zip(backbone.model.get_weights(), small.model.get_weights(), strict=True):
        assert got.dtype == "float32" and np.array_equal(got, expected.astype("float16"))


def test_arrays_without_names_come_back_in_order(small, tmp_path):
    np.savez(tmp_path / "plain.npz", *small.model.get_weights())
    backbone = load_backbone(weights=tmp_path / "plain.npz", image_size=32)
    for got, expected in zip(backbone.model.get_weights(), small.model.get_weights(), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras", ".h5"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_a_net_of_keras_whose_file_holds_its_normalization_is_read(suffix, tmp_path):
    net = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(32, 32, 3))
    (net.save_weights if suffix == ".weights.h5" else net.save)(tmp_path / f"net{suffix}")
    backbone = load_backbone("EfficientNetB0", weights=tmp_path / f"net{suffix}", image_size=32)
    for name in ("stem_conv", "block3b_dwconv", "top_bn"):
        held = backbone.model.get_layer(name).get_weights()
        for got, expected in zip(held, net.get_layer(name).get_weights(), strict=True):
            np.testing.assert_array_equal(got, expected)


def test_auto_takes_the_embedded_weights_offline_and_says_so_in_one_line(small, offline, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(weights, "EMBEDDED_FILE", embedded_file(tmp_path / "embedded.npz", small))
    with caplog.at_level(logging.INFO, "tlkeras"):
        backbone = load_backbone("ResNet50", weights="auto", image_size=32)
    assert (backbone.name, backbone.weights) == ("MobileNetV2", "embedded")
    assert len(caplog.messages) == 1 and "ResNet50" in caplog.text and "embedded" in caplog.text


@needs_weights
def test_auto_takes_the_width_that_is_in_the_cache(offline, caplog):
    shutil.copy(next((SHARED / "models").glob("*v2*0.35*no_top*")), offline)
    backbone = load_backbone(weights="auto")
    assert (backbone.weights, backbone.alpha) == ("imagenet", 0.35)
    assert "alpha 0.35" in caplog.text
    assert weights_in_reach("MobileNetV2") is None and weights_in_reach("MobileNetV2", 0.35).parent == offline


def test_missing_embedded_weights_are_said_to_be_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "EMBEDDED_FILE", tmp_path / "embedded.npz")
    with pytest.raises(WeightsNotFoundError, match=r"embedded\.npz"):
        load_backbone(weights="embedded", image_size=32)


@pytest.mark.parametrize("suffix", [".weights.h5", ".npz", ".keras"])
def test_a_file_of_another_net_is_refused_with_file_net_and_counts(suffix, small, tmp_path):
    path = tmp_path / f"other{suffix}"
    if suffix == ".npz":
        embedded_file(path, small)
    else:
        (small.model.save_weights if suffix == ".weights.h5" else small.model.save)(path)
    with pytest.raises(ValueError) as raised:
        load_backbone("MobileNet", weights=path, image_size=32, alpha=0.25)
    for part in (str(path), "MobileNet at alpha 0.25", "410,208", "218,544"):
        assert part in str(raised.value)


@pytest.mark.parametrize("name", ["damaged.h5", "damaged.npz", "damaged.keras", "damaged.txt"])
def test_a_damaged_file_is_named(name, tmp_path):
    (tmp_path / name).write_bytes(b"<html>404</html>")
    with pytest.raises(ValueError, match=f"{name} cannot be read as weights"):
        load_backbone(weights=tmp_path / name, image_size=32)


def test_no_such_file_names_the_choices():
    with pytest.raises(WeightsNotFoundError, match='"imagenet", "embedded", "auto"'):
        load_backbone(weights="imagnet", image_size=32)
