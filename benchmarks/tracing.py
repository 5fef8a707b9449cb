"""How long until `fit` has done its first step? Keras compiled as its guides do, and so that it traces the step once.

    python benchmarks/tracing.py [--repeats 3] [--json]

A metric by name and the optimizer's slots come into being in the first step, and TensorFlow then traces it again. With
a metric object and `optimizer.build` there is nothing left to create. `train_head` and `fine_tune` do so. Random
weights, all layers unfrozen, one batch of 8 random pictures; the two take turns, each time with a new model, medians.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from _turns import claim_row, in_turns, measure_all

NETS = {
    "MobileNetV2 0.35": lambda **options: keras.applications.MobileNetV2(alpha=0.35, **options),
    "EfficientNetB0": keras.applications.EfficientNetB0,
    "ResNet50": keras.applications.ResNet50,
}
PICTURES = np.random.default_rng(0).integers(0, 256, (8, 96, 96, 3)).astype("float32"), np.arange(8) % 5


def first_step(name: str, metric: str | keras.metrics.Metric, build: bool) -> None:
    """Compile a new model, the way asked for, and train it on one batch."""
    base = NETS[name](weights=None, include_top=False, pooling="avg", input_shape=(96, 96, 3))
    model = keras.Model(base.input, keras.layers.Dense(5)(base.output))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=[metric])
    if build:
        model.optimizer.build(model.trainable_variables)
    model.fit(*PICTURES, batch_size=8, verbose=0)


def measure(name: str, repeats: int) -> dict:
    """Seconds from building the model to the end of its first step, ours and the guides'."""
    mine, peer = in_turns(
        lambda: first_step(name, keras.metrics.SparseCategoricalAccuracy("accuracy"), True),
        lambda: first_step(name, "accuracy", False),
        repeats,
        1000,  # so that milliseconds become seconds
    )
    return claim_row(f"{name}: seconds until the first step is done, traced once against twice", mine, peer, 1.3)


if __name__ == "__main__":
    measure_all(__doc__, NETS, measure, 3)
