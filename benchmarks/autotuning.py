"""Does tf.data's autotuner cost time? `fit` on arrays as Keras feeds them and on `make_batches`, in turns.

    python benchmarks/autotuning.py [--repeats 7] [--json]

Random numbers of the shape of 1,000 pooled features (a linear head), of feature maps (a block on top), and 2,560 small
pictures (a network from scratch); epochs of about 0.05, 0.5 and 2 seconds. Medians of a call of `fit` of three epochs.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from _turns import claim_row, in_turns, measure_all

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
    batches = tl.make_batches(values, labels, seed=0)
    mine, peer = in_turns(
        lambda: model.fit(batches, shuffle=False, epochs=3, verbose=0),
        lambda: model.fit(values, labels, epochs=3, verbose=0),
        repeats,
        3,
    )
    return claim_row(f"{name}: ms an epoch with make_batches against arrays", mine, peer, 1.0)


if __name__ == "__main__":
    measure_all(__doc__, WORK, measure, 7, quick=3)
