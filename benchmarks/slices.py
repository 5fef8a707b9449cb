"""Do slices that fit the cache pay? OpenVINO with the slices of `tlkeras.engines` and with whole batches of 32.

    python benchmarks/slices.py [--repeats 5] [--json]

Random weights, random uint8 pictures, float32, network and engine in memory; the two take turns, medians are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

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
    times = {ours: [], None: []}
    for repeat in range(repeats + 1):
        for runner._slice in times:
            started = time.perf_counter()
            list(runner.run(batches))
            if repeat:  # the first compiles
                times[runner._slice].append(1000 * (time.perf_counter() - started) / count)
    mine, peer = (statistics.median(times[key]) for key in (ours, None))
    claim = f"{name}, {size} px: ms a picture in slices of up to {ours} against batches of 32"
    return {"claim": claim, "ours": round(mine, 2), "peer": round(peer, 2), "ratio": round(peer / mine, 2),
            "goal": 0.95, "holds": peer / mine >= 0.95}  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="the first network, once")
    parser.add_argument("--json", action="store_true", help="one object a line")
    arguments = parser.parse_args()
    for name in list(NETS)[: 1 if arguments.quick else None]:
        row = measure(name, 1 if arguments.quick else arguments.repeats)
        print(json.dumps(row) if arguments.json else f"{row['ratio']:6.2f} times as fast: {row}", flush=True)


if __name__ == "__main__":
    main()
