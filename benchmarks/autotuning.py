"""Does tf.data's autotuner cost time? `fit` on arrays as Keras feeds them and on `make_batches`, in turns.

    python benchmarks/autotuning.py [--repeats 7] [--json]

Random numbers of the shape of 1,000 pooled features (a linear head), of feature maps (a block on top), and 2,560 small
pictures (a network from scratch); epochs of about 0.05, 0.5 and 2 seconds. Medians of a call of `fit` of three epochs.
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

LAYERS = keras.layers
WORK = {  # what: (shape of the inputs, what is trained on them)
    "a linear head on 1,000 features": ((1000, 1280), lambda: [LAYERS.Dense(5)]),
    "a block on 1,000 feature maps": (
        (1000, 7, 7, 112),
        lambda: [
            LAYERS.Conv2D(336, 1, activation="relu"),
            LAYERS.DepthwiseConv2D(3, padding="same", activation="relu"),
            LAYERS.Conv2D(112, 1),
            LAYERS.GlobalAveragePooling2D(),
            LAYERS.Dense(5),
        ],
    ),
    "a small network on 2,560 pictures": (
        (2560, 32, 32, 3),
        lambda: [
            *(LAYERS.Conv2D(channels, 3, strides=2, activation="relu") for channels in (32, 64, 128)),
            LAYERS.GlobalAveragePooling2D(),
            LAYERS.Dense(5),
        ],
    ),
}


def measure(name: str, repeats: int) -> dict:
    """Milliseconds an epoch, ours and on arrays."""
    shape, layers = WORK[name]
    rng = np.random.default_rng(0)
    values, labels = rng.random(shape, np.float32), rng.integers(0, 5, shape[0])
    model = keras.Sequential([keras.Input(shape[1:]), *layers()])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    ways = {"arrays": (values, labels), "make_batches": (tl.make_batches(values, labels, seed=0),)}
    times = {way: [] for way in ways}
    for repeat in range(repeats + 1):
        for way, data in ways.items():
            started = time.perf_counter()
            model.fit(*data, shuffle=len(data) == 2, epochs=3, verbose=0)
            if repeat:  # the first compiles
                times[way].append(1000 * (time.perf_counter() - started) / 3)
    peer, mine = (statistics.median(times[way]) for way in ways)
    return {"claim": f"{name}: ms an epoch with make_batches against arrays", "ours": round(mine, 1),
            "peer": round(peer, 1), "ratio": round(peer / mine, 2), "goal": 1.0, "holds": peer >= mine}  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="three repeats")
    parser.add_argument("--json", action="store_true", help="one object a line")
    arguments = parser.parse_args()
    for name in WORK:
        row = measure(name, 3 if arguments.quick else arguments.repeats)
        print(json.dumps(row) if arguments.json else f"{row['ratio']:6.2f} times as fast: {row}", flush=True)


if __name__ == "__main__":
    main()
