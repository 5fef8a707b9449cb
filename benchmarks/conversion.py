"""Handing a network to OpenVINO: its weights as tensors, as `tlkeras.conversion` does, and as the model has them.

    python benchmarks/conversion.py [--repeats 3] [--json]

The peer is `openvino.convert_model` of a `tf.function` of the model, as its guide says. Random weights, 96 px, all that
comes out is compared; the two take turns, medians of wall time. It is what a first start waits for, apart from imports.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from _turns import claim_row, in_turns, measure_all

import tlkeras as tl
from tlkeras.conversion import convert, import_openvino

openvino = import_openvino()

NETS = {"MobileNetV2": 0.35, "EfficientNetB0": None, "ResNet50": None, "DenseNet121": None}  # name: alpha
SIZE = 96


def measure(name: str, repeats: int) -> dict:
    """Milliseconds of a conversion, ours and the peer's."""
    network = tl.load_backbone(name, weights=None, alpha=NETS[name], image_size=SIZE).model

    def plain():
        forward = tf.function(lambda images: network(images, training=False), [tf.TensorSpec(network.input_shape)])
        return openvino.convert_model(forward, input=[-1, SIZE, SIZE, 3])

    pictures = np.random.default_rng(0).uniform(0, 255, (4, SIZE, SIZE, 3)).astype("float32")
    found = [openvino.compile_model(graph, "CPU")(pictures)[0] for graph in (convert(network), plain())]
    if not np.array_equal(*found):
        raise SystemExit(f"{name}: the two give other features, by up to {np.abs(found[0] - found[1]).max()}.")
    return claim_row(f"{name}: ms of a conversion against weights as variables", *in_turns(
        lambda: convert(network), plain, repeats, 1), 1.2)  # fmt: skip


if __name__ == "__main__":
    measure_all(__doc__, NETS, measure, 3)
