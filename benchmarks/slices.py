"""Do slices that fit the cache pay? OpenVINO with the slices of `tlkeras.engines` and with whole batches of 32.

    python benchmarks/slices.py [--repeats 5] [--json]

Random weights, random uint8 pictures, float32, network and engine in memory; the two take turns, medians are compared.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from _turns import claim_row, in_turns, measure_all

import tlkeras as tl
from tlkeras.engines import load_engine

NETS = {  # name: alpha, side in pixels, pictures
    "MobileNetV2 0.35": (0.35, 224, 512),
    "MobileNetV2 0.35, small": (0.35, 96, 1024),
    "EfficientNetB0": (None, 224, 128),
    "ResNet50": (None, 224, 64),
    "DenseNet121": (None, 224, 64),
}


def measure(name: str, repeats: int) -> dict:
    """Milliseconds a picture, ours and with whole batches."""
    alpha, size, count = NETS[name]
    backbone = tl.load_backbone(name.split()[0], weights=None, alpha=alpha, image_size=size)
    pooled = keras.layers.GlobalAveragePooling2D()(backbone.model.output)
    runner = load_engine(keras.Model(backbone.model.inputs[0], pooled), "openvino")
    ours = runner._slice
    pictures = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    batches = [pictures[start : start + 32] for start in range(0, count, 32)]

    def run(size_of_slices: int | None) -> None:
        runner._slice = size_of_slices
        list(runner.run(batches))

    mine, peer = in_turns(lambda: run(ours), lambda: run(None), repeats, count)
    return claim_row(
        f"{name}, {size} px: ms a picture in slices of up to {ours} against batches of 32", mine, peer, 0.95
    )


if __name__ == "__main__":
    measure_all(__doc__, NETS, measure, 5)
