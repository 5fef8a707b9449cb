"""Where weights come from, and what is said when they are not to be had."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.server
import logging
import os
import shutil
import socket
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from test_backbones import own_module, pictures

from tlkeras import weights
from tlkeras.backbones import Backbone, load_backbone
from tlkeras.catalogue import CATALOGUE
from tlkeras.weights import WeightsNotFoundError, fill_weights, find_weights, weights_in_reach

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
    with pytest.raises(WeightsNotFoundError) as raised:
        load_backbone("ResNet50", image_size=32)
    text = str(raised.value)
    assert "https://storage.googleapis.com/" in text and "the network is cut" in text
    assert str(offline / "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5") in text
    assert 'weights="embedded"' in text and "weights=PATH" in text and "KERAS_HOME" in text
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
    assert capsys.readouterr().out == ""


def test_a_name_server_that_never_answers_does_not_hang(offline, monkeypatch):
    monkeypatch.setattr(weights, "_PROBE_SECONDS", 0.2)
    never = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: never.wait(600))
    with pytest.raises(WeightsNotFoundError, match="no answer in 0.2 seconds"):
        load_backbone("ResNet50", image_size=32)
    assert not never.is_set()
    never.set()  # let its thread go


def publish(monkeypatch, offline: Path, content: bytes, served: bytes | None) -> Path:
    """Let the catalogue know this content's checksum and the address serve another; get the place in the cache."""
    width, address = CATALOGUE["ResNet50"].width(1.0), offline.parent / "address"
    if served is not None:
        address.write_bytes(served)
    known = dataclasses.replace(width, hash=hashlib.md5(content).hexdigest(), url=address.as_uri())
    monkeypatch.setitem(CATALOGUE["ResNet50"].widths, 1.0, known)
    return offline / width.file


@pytest.mark.parametrize("before", [None, b"half a file"])
def test_a_download_with_another_checksum_is_never_taken_nor_left_behind(before, offline, monkeypatch, caplog):
    file = publish(monkeypatch, offline, b"weights", served=b"<html>a proxy</html>")
    if before:
        file.write_bytes(before)
    with pytest.raises(WeightsNotFoundError) as raised:
        load_backbone("ResNet50", image_size=32)
    for part in (str(file), CATALOGUE["ResNet50"].width(1.0).url, "hash does not match"):
        assert part in str(raised.value)
    assert "another image size" not in caplog.text and ("is damaged" in str(raised.value)) == bool(before)
    assert [(path.name, path.read_bytes()) for path in offline.iterdir()] == ([(file.name, before)] if before else [])


def test_a_damaged_file_in_the_cache_is_fetched_again(offline, monkeypatch):
    file = publish(monkeypatch, offline, b"weights", served=b"weights")
    file.write_bytes(b"weighty")
    assert find_weights(CATALOGUE["ResNet50"], "imagenet", None, 224) == (file, 1.0, "imagenet")
    assert file.read_bytes() == b"weights"


def test_a_damaged_file_in_the_cache_is_not_used_offline_but_left_to_its_owner(offline, monkeypatch):
    file = publish(monkeypatch, offline, b"weights", served=None)
    file.write_bytes(b"weighty")
    with pytest.raises(WeightsNotFoundError, match=r"is damaged: its checksum.*\n.*No such file.*\n.*delete that one"):
        load_backbone("ResNet50", image_size=32)
    assert file.read_bytes() == b"weighty"


def test_a_file_in_the_cache_is_read_for_its_checksum_once_and_again_when_it_changed(offline, monkeypatch):
    file = publish(monkeypatch, offline, b"weights", served=None)
    file.write_bytes(b"weights")
    weights._checksum.cache_clear()
    for _ in range(3):
        assert find_weights(CATALOGUE["ResNet50"], "imagenet", None, 224)[0] == file
    assert weights._checksum.cache_info().misses == 1
    file.write_bytes(b"other weights")
    with pytest.raises(WeightsNotFoundError, match="is damaged"):
        find_weights(CATALOGUE["ResNet50"], "imagenet", None, 224)


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


@pytest.mark.parametrize("damaged", [True, False], ids=["a damaged file", "a download that breaks off"])
def test_auto_takes_the_embedded_weights_where_imagenets_turn_out_not_to_be_in_reach(
    damaged, offline, monkeypatch, caplog
):
    width = CATALOGUE["MobileNetV2"].width(1.0)
    if damaged:
        (offline / width.file).write_bytes(b"half of a file")
    else:
        monkeypatch.setattr(weights, "_unreachable", lambda url: None)
    backbone = load_backbone(weights="auto", image_size=32)
    assert (backbone.weights, backbone.alpha) == ("embedded", 0.35)
    assert width.file in caplog.text and "taking the embedded" in caplog.text


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


@pytest.fixture(scope="module")
def net() -> keras.Model:
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense")])


def nothing(path: Path) -> None:
    path.write_bytes(b"")


def array_alone(path: Path) -> None:
    with open(path, "wb") as content:
        np.save(content, np.zeros(99))


def spoilt_deflate(path: Path) -> None:
    np.savez_compressed(path, np.arange(1000))
    content = bytearray(path.read_bytes())
    content[60:100] = b"\xff" * 40
    path.write_bytes(content)


def spoilt_header(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", b"\x93NUMPY\x01\x00\x10\x00{'descr': (((((\n" + bytes(99))


def unknown_compression(path: Path) -> None:
    np.savez(path, np.zeros(99))
    content = path.read_bytes()
    for mark, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = content.index(mark) + place
        content = content[:at] + b"\x63\x00" + content[at + 2 :]
    path.write_bytes(content)


def no_array(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", b"weights")


def spoilt_h5(path: Path) -> None:
    with h5py.File(path, "w") as group:
        for k in range(50):
            group.create_group(f"layer_{k}")["kernel"] = np.zeros(9)
    content = bytearray(path.read_bytes())
    for at in range(1000, len(content) - 8, 500):
        content[at : at + 8] = b"\xff" * 8
    path.write_bytes(content)


@pytest.mark.parametrize(
    "spoil", [nothing, array_alone, spoilt_deflate, spoilt_header, unknown_compression, no_array, spoilt_h5]
)
def test_whatever_the_damage_the_error_is_the_same_clear_one(spoil, net, tmp_path):
    path, entry = tmp_path / ("weights.h5" if spoil is spoilt_h5 else "weights.npz"), CATALOGUE["MobileNetV2"]
    spoil(path)
    assert find_weights(entry, path, None, 224) == (path, 1.0, str(path))  # as its width cannot be told
    with pytest.raises(ValueError, match=rf"{path.name} cannot be read as weights .* expected 15 weights"):
        fill_weights(net, path, entry, 1.0)


@pytest.mark.parametrize("suffix", [".weights.h5", ".npz", ".keras"])
def test_a_small_file_that_claims_to_be_a_large_one_is_refused_before_it_is_read(suffix, net, tmp_path, monkeypatch):
    path = tmp_path / f"claims{suffix}"
    if suffix == ".npz":
        np.savez_compressed(path, np.zeros(10**6, "float32"))
    elif suffix == ".keras":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("model.weights.h5", bytes(4 * 10**6))
    else:
        with h5py.File(path, "w") as group:
            group.create_dataset("layers/dense/vars/0", shape=(10**9,), chunks=(10**6,), dtype="float32")
    assert path.stat().st_size < 20_000
    for reads in ("_read", "_read_npz"):
        monkeypatch.delattr(weights, reads)
    with pytest.raises(ValueError, match=rf"{path.name} cannot be read as weights .*far too many"):
        fill_weights(net, path, CATALOGUE["MobileNetV2"], 1.0)


def test_weights_that_are_no_numbers_are_refused(net, tmp_path):
    np.savez(tmp_path / "net.npz", np.full((4, 3), np.nan, "float32"), np.zeros(3, "float32"))
    with pytest.raises(ValueError, match="NaN or infinite"):
        fill_weights(net, tmp_path / "net.npz", CATALOGUE["MobileNetV2"], 1.0)


def test_damage_that_only_reading_meets_is_told_as_clearly(net, tmp_path):
    path, values = tmp_path / "net.weights.h5", np.arange(1, 13, dtype="float32").reshape(4, 3)
    net.save_weights(path)
    with h5py.File(path, "r+") as group:
        held = next(item for item in group["layers/dense/vars"].values() if item.shape == (4, 3))
        name = held.name
        del group[name]
        group.create_dataset(name, data=values, fletcher32=True)
    content = path.read_bytes()
    assert content.count(values.tobytes()) == 1
    path.write_bytes(content.replace(values.tobytes(), bytes(48)))
    with pytest.raises(ValueError, match=r"net\.weights\.h5 holds 15; expected 15 weights.*fetched again\. \(.*read"):
        fill_weights(net, path, CATALOGUE["MobileNetV2"], 1.0)


def test_no_such_file_names_the_choices():
    with pytest.raises(WeightsNotFoundError, match='"imagenet", "embedded", "auto"'):
        load_backbone(weights="imagnet", image_size=32)


class Slow(http.server.BaseHTTPRequestHandler):
    """Sends ten parts, a moment apart."""

    content = bytes(range(250)) * 40

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        for start in range(0, len(self.content) if self.command == "GET" else 0, 1000):
            self.wfile.write(self.content[start : start + 1000])
            time.sleep(0.05)

    do_HEAD = do_GET


@pytest.mark.parametrize("known", [None, hashlib.md5(Slow.content).hexdigest()], ids=["no checksum", "checksum"])
def test_two_that_download_at_a_time_both_get_the_whole_file(known, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "_ONE_AT_A_TIME", contextlib.nullcontext())  # as if they were two processes
    monkeypatch.setattr(socket, "setdefaulttimeout", lambda seconds: None)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        width = CATALOGUE["ResNet50"].width(1.0)
        address = f"http://127.0.0.1:{server.server_port}/{width.file}"
        monkeypatch.setitem(CATALOGUE["ResNet50"].widths, 1.0, dataclasses.replace(width, hash=known, url=address))
        with ThreadPoolExecutor(2) as pool:
            both = []
            for _ in range(2):
                both.append(pool.submit(find_weights, CATALOGUE["ResNet50"], "imagenet", None, 224))
                time.sleep(0.3)
            for got in both:
                assert got.result()[0] == tmp_path / "models" / width.file
                assert got.result()[0].read_bytes() == Slow.content
        server.shutdown()
    assert [path.name for path in (tmp_path / "models").iterdir()] == [width.file]


def test_auto_takes_the_embedded_weights_at_their_own_size(offline):
    assert load_backbone("EfficientNetB7", weights="auto").image_size == 224


def test_a_cache_that_cannot_be_written_is_left_to_keras(offline, monkeypatch, tmp_path):
    file, asked = publish(monkeypatch, offline, b"weights", served=b"weights"), []
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(keras.utils, "get_file", lambda name, *_, **__: asked.append(name) or str(tmp_path / "spare"))
    assert find_weights(CATALOGUE["ResNet50"], "imagenet", None, 224)[0] == tmp_path / "spare"
    assert asked == [file.name]
