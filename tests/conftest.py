"""Fixtures shared by the tests: a tiny world, no network, the real material where it is at hand."""

import os
import socket
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest

from tlkeras.backbones import Backbone

SHARED = Path(__file__).resolve().parents[2] / "shared"
LOCAL = ("127.", "::1", "localhost")


@pytest.fixture(autouse=True, scope="session")
def no_network():
    """Every connection that leaves this machine fails at once, whatever the machine could reach."""
    patch = pytest.MonkeyPatch()
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self, address):
        if self.family == socket.AF_UNIX or str(address[0]).startswith(LOCAL):
            return connect(self, address)
        raise OSError(f"the tests run without a network; something tried {address}")

    def guarded_look_up(host, *rest, **more):
        if host is None or str(host).startswith(LOCAL):
            return look_up(host, *rest, **more)
        raise socket.gaierror(f"the tests run without a network; something looked up {host}")

    patch.setattr(socket.socket, "connect", guarded_connect)
    patch.setattr(socket, "getaddrinfo", guarded_look_up)
    yield
    patch.undo()


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
    """A net small enough for a test that has what breaks real ones: batch norm, depthwise layers, dropout, three stages."""
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
