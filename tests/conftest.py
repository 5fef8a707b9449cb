"""Fixtures shared by the tests: a tiny world, no network, the real material where it is at hand."""

import io
import os
import socket
import struct
import zlib
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Two tests run at a time, on small pictures: more threads would wait for one another, BLAS's by spinning.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from tlkeras.startup import import_keras

import_keras()  # in less time than by itself

import keras
import numpy as np
import pytest
from PIL import Image

from tlkeras.backbones import Backbone

SHARED = Path(__file__).resolve().parents[2] / "shared"
LOCAL = ("127.", "::1", "localhost")


@pytest.fixture(autouse=True, scope="session")
def no_network():
    """Every connection that leaves this machine fails at once, whatever the machine could reach."""
    patch = pytest.MonkeyPatch()
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self, address):
        if self.family == getattr(socket, "AF_UNIX", None) or str(address[0]).startswith(LOCAL):
            return connect(self, address)
        raise OSError(f"the tests run without a network; something tried {address}")

    def guarded_look_up(host, *rest, **more):
        if host is None or str(host).startswith(LOCAL):
            return look_up(host, *rest, **more)
        raise socket.gaierror(f"the tests run without a network; something looked up {host}")

    patch.setattr(socket.socket, "connect", guarded_connect)
    patch.setattr(socket, "getaddrinfo", guarded_look_up)
    for name in ("NO_PROXY", "no_proxy"):  # servers of the tests are asked directly
        patch.setenv(name, "127.0.0.1,localhost")
    yield
    patch.undo()


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Compiled engines and stored features go to a folder of this session, in processes started by tests too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TLKERAS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def same_seed():
    """Each test starts from the same random state, whatever ran before it."""
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real pictures and genuine weights beside the project."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs the real data sets and ImageNet weights in ../shared, which are not part of the project")
    return SHARED


def make_tiny_backbone(image_size: int = 32) -> Backbone:
    """A net small enough for a test that has what breaks real ones: batch norm, depthwise, dropout, three stages."""
    layers = keras.layers
    image = keras.Input((image_size, image_size, 3), name="image")
    x = layers.Identity(name="augmentation")(image)
    x = layers.Rescaling(1 / 127.5, -1, name="preprocess_rescaling")(x)
    for k, channels in enumerate((8, 12, 16)):
        x = layers.Conv2D(channels, 3, strides=2, padding="same", use_bias=False, name=f"conv_{k}")(x)
        x = layers.BatchNormalization(name=f"norm_{k}")(x)
        x = layers.ReLU(name=f"relu_{k}")(x)
        x = layers.DepthwiseConv2D(3, padding="same", name=f"depthwise_{k}")(x)
        x = layers.Dropout(0.5, name=f"drop_{k}")(x)
    model = keras.Model(image, x, name="tiny")
    return Backbone("Tiny", model, "random", image_size, ("drop_0", "drop_1", "drop_2"), 16)


@pytest.fixture
def tiny_backbone() -> Backbone:
    """A fresh tiny backbone with random weights."""
    return make_tiny_backbone()


@pytest.fixture
def colour_pictures() -> tuple[np.ndarray, np.ndarray]:
    """60 pictures of three classes that differ in colour, uint8 (60, 32, 32, 3), and their labels."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = rng.integers(0, 120, (60, 32, 32, 3))
    images[np.arange(60), :, :, labels] += 80
    return images.astype(np.uint8), labels


def save_picture(path: Path, seed: int, size: tuple[int, int] = (40, 36)) -> None:
    """Write a picture of coloured patches that no other seed gives; its folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path)


@pytest.fixture(scope="session")
def insects(tmp_path_factory) -> Path:
    """A folder of three class folders, 20 + 15 + 15 pictures; not to be written into."""
    root = tmp_path_factory.mktemp("pictures") / "set"
    for start, (name, count) in enumerate({"ants": 20, "bees": 15, "wasps": 15}.items()):
        for number in range(count):
            save_picture(root / name / f"{number:02}.png", 100 * start + number)
    return root


def picture(seed: int, size=(48, 40)) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims any size and holds next to nothing."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(bytes(100)))
    body = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


@pytest.fixture(scope="session")
def odd_files() -> dict[str, dict[str, bytes]]:
    """Forty files as they lie in real folders, by name: "good" can be used, "bad" cannot."""
    good, bad = {}, {}
    rgb = picture(7)
    good["cmyk.jpg"] = encoded(rgb.convert("CMYK"), "JPEG")
    good["grey.jpg"] = encoded(rgb.convert("L"), "JPEG")
    good["progressive.jpg"] = encoded(rgb, "JPEG", progressive=True)
    good["palette.png"] = encoded(rgb.convert("P"), "PNG")
    good["alpha.png"] = encoded(rgb.convert("RGBA"), "PNG")
    good["grey_alpha.png"] = encoded(rgb.convert("LA"), "PNG")
    good["sixteen.png"] = encoded(Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100), "PNG")
    good["one_bit.png"] = encoded(rgb.convert("1"), "PNG")
    good["rgb_transparent.png"] = encoded(rgb, "PNG", transparency=(0, 0, 0))
    good["still.gif"] = encoded(rgb, "GIF")
    good["moving.gif"] = encoded(rgb, "GIF", save_all=True, append_images=[picture(8)])
    good["still.webp"] = encoded(rgb, "WEBP")
    good["moving.webp"] = encoded(rgb, "WEBP", save_all=True, append_images=[picture(8)])
    good["lossless.webp"] = encoded(rgb.convert("RGBA"), "WEBP", lossless=True)
    good["map.bmp"] = encoded(rgb, "BMP")
    good["map8.bmp"] = encoded(rgb.convert("P"), "BMP")
    good["plain.tif"] = encoded(rgb, "TIFF")
    good["png_named.jpg"] = encoded(rgb, "PNG")
    good["jpeg_named.png"] = encoded(rgb, "JPEG")
    good["no_ending"] = encoded(rgb, "JPEG")
    good["tiny.png"] = encoded(Image.new("RGB", (1, 1)), "PNG")
    good["thin.png"] = encoded(Image.new("RGB", (900, 1)), "PNG")
    good["Ameisenbär 蚂蚁 🐜.png"] = encoded(rgb, "PNG")
    good["x" * 240 + ".png"] = encoded(rgb, "PNG")
    good["with space, comma;.png"] = encoded(rgb, "PNG")
    good["deeper/still deeper/inside.png"] = encoded(rgb, "PNG")
    bad["truncated.jpg"] = encoded(rgb, "JPEG")[:-300]
    bad["truncated.png"] = encoded(rgb, "PNG")[:-300]
    bad["truncated.webp"] = encoded(rgb, "WEBP")[:-100]
    bad["header_only.gif"] = encoded(rgb, "GIF")[:20]
    bad["zero.jpg"] = b""
    bad["page.jpg"] = b"<html><body>404 not found</body></html>"
    bad["vector.svg"] = b"<svg xmlns='http://www.w3.org/2000/svg'/>"
    bad["notes.txt"] = b"remember the milk"
    bad["labels.csv"] = b"a,b\n1,2\n"
    bad["archive.zip"] = b"PK\x03\x04" + bytes(100)
    bad["noise.jpg"] = np.random.default_rng(0).bytes(3000)
    bad["bomb.png"] = png_header(60_000, 60_000)
    bad["small_bomb.png"] = png_header(10_000, 12_000)
    bad["postscript.eps"] = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"
    bad["real.tif"] = encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
    return {"good": good, "bad": bad}
