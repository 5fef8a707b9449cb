"""Train a backbone of the kind that is embedded: MobileNetV2 alpha 0.35 on photographs and fractals, from one seed.

    python -m benchmarks pretrain_embedded --tiny-imagenet DIR --run DIR --export FILE.npz [--times 2] [--seed 0]

Tiny ImageNet (Stanford CS231n, 200 classes at 64 px, http://cs231n.stanford.edu/tiny-imagenet-200.zip) may be an
unpacked `wnid/**/*.JPEG` tree or a folder of zips. One softmax tells 200 photographed classes and 400 fractal systems
apart. The first steps see pictures at 64 px, the others at 96 px, where the network is used, with fewer fractals in a
batch, for batch-norm statistics nearer to photographs, and with crops that are nearer to whole pictures, as the network
will see them. In the last ones half of the fractals are soft, as handwritten digits of 8 pixels are. A batch is a
function of the seed and of its step: started again, a run goes on from the last 250 steps with the pictures that it
would have seen. 37,000 steps take two and a half hours on two quiet cores; `--times` makes a run longer. What they are
worth is told in `data/embedded_weights.md`.
"""

from __future__ import annotations

import argparse
import io
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from tlkeras.fractals import make_fractals

SIZE, SYSTEMS, PICTURES, BATCH, EPOCH = 64, 400, 120, 128, 250
WARM_UP = 500


@dataclass(frozen=True)
class Phase:
    """Steps at one size.

    Attributes:
        steps: how many.
        image_size: in pixels.
        num_fractals: of each batch; the others are photographs.
        least_area: of a crop, as a share of its picture.
        peak: of a learning rate whose cosine begins with this phase and lasts until the next one begins; None goes on.
        soft: share of the fractals that are enlarged from a quarter of the size.
    """

    steps: int
    image_size: int
    num_fractals: int
    least_area: float = 0.5
    peak: float | None = None
    soft: float = 0.0


PHASES = (
    Phase(8_000, 64, 32, peak=2.5e-3),
    Phase(12_000, 96, 10),
    Phase(8_000, 96, 4, least_area=0.7, peak=1.5e-3),
    Phase(4_000, 96, 10, least_area=0.7, peak=1.5e-3, soft=0.5),
    Phase(1_000, 96, 4, least_area=0.7, soft=0.5),
    Phase(4_000, 96, 4, least_area=0.7, peak=1.2e-3, soft=0.5),
)


def read_photographs(folder: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Every training JPEG under `folder`, or in its train*.zip files, with the class from the wnid in its path."""
    pictures: list[tuple[str, bytes]] = []
    for archive in sorted(folder.glob("train*.zip")):
        with zipfile.ZipFile(archive) as bundle:
            pictures += [(name, bundle.read(name)) for name in bundle.namelist() if name.endswith(".JPEG")]
    if not pictures:
        pictures = [(str(f.relative_to(folder)), f.read_bytes()) for f in sorted(folder.rglob("n*/**/*.JPEG"))]
    if not pictures:
        raise SystemExit(f"{folder} holds neither train*.zip nor wnid/**/*.JPEG")
    wnids = [
        next(part for part in name.split("/") if part.startswith("n") and part[1:].isdigit()) for name, _ in pictures
    ]
    classes = sorted(set(wnids))
    labels = np.array([classes.index(wnid) for wnid in wnids])
    images = np.stack(
        [np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((SIZE, SIZE))) for _, data in pictures]
    )
    return images, labels, classes


def load_pictures(tiny_imagenet: Path, cache: Path) -> dict[str, np.ndarray]:
    """Photographs and fractals, decoded or drawn once and kept in `cache`."""
    if not cache.exists():
        images, labels, classes = read_photographs(tiny_imagenet)
        fractals, systems = make_fractals(SYSTEMS, PICTURES, image_size=SIZE, family=0)
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial = cache.with_suffix(".partial.npz")
        np.savez(partial, photos=images, labels=labels, classes=classes, fractals=fractals, systems=systems)
        partial.replace(cache)
    with np.load(cache) as stored:
        return {key: stored[key] for key in stored.files}


def blur(images: tf.Tensor) -> tf.Tensor:
    """Each picture under the kernel 1 2 1 in both directions; slices, which cost less than a convolution here."""
    x = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]], "SYMMETRIC")
    x = (x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:]) / 4
    return (x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]) / 4


def augment(images: tf.Tensor, phase: Phase, seed: tf.Tensor) -> tf.Tensor:
    """Crops, flips, sharpness, light, a tenth of them grey: a function of the seed alone; fractals come last."""
    draws, size = iter(range(100)), phase.image_size

    def uniform(shape: list[int], low: float = 0.0, high: float = 1.0) -> tf.Tensor:
        return tf.random.stateless_uniform(shape, seed + [0, next(draws)], low, high)

    side, aspect = tf.sqrt(uniform([BATCH], phase.least_area, 1.0)), tf.exp(uniform([BATCH], -0.2, 0.2))
    height, width = tf.minimum(side * aspect, 1.0), tf.minimum(side / aspect, 1.0)
    top, left = uniform([BATCH]) * (1 - height), uniform([BATCH]) * (1 - width)
    flip = uniform([BATCH]) < 0.5
    x1, x2 = tf.where(flip, left + width, left), tf.where(flip, left, left + width)
    images = tf.image.crop_and_resize(images, tf.stack([top, x1, top + height, x2], 1), tf.range(BATCH), [size, size])
    # Enlarged pictures are softer than any that the network will meet: sharpen them by a random amount.
    amount = uniform([BATCH, 1, 1, 1], 0.0, 2.0)
    images += amount * (images - blur(images))
    grey = tf.reduce_mean(images, axis=-1, keepdims=True)
    images = tf.where(uniform([BATCH, 1, 1, 1]) < 0.1, grey, images)
    mean = tf.reduce_mean(images, axis=[1, 2, 3], keepdims=True)
    images = (images - mean) * uniform([BATCH, 1, 1, 1], 0.7, 1.3) + mean
    images = tf.clip_by_value(images * uniform([BATCH, 1, 1, 3], 0.8, 1.2), 0, 255)
    photographs, fractals = images[: -phase.num_fractals], images[-phase.num_fractals :]
    soft = tf.image.resize(tf.image.resize(fractals, [size // 4, size // 4], "area"), [size, size])
    fractals = tf.where(uniform([phase.num_fractals, 1, 1, 1]) < phase.soft, soft, fractals)
    return tf.concat([photographs, fractals], 0)


class Batches:
    """Batches of (images in 0-255, label in 0..599), each a function of the seed and its step."""

    def __init__(self, pictures: dict[str, np.ndarray], seed: int) -> None:
        """Hold the pictures as tensors."""
        with tf.device("cpu"):
            self.photos, self.fractals = tf.constant(pictures["photos"]), tf.constant(pictures["fractals"])
            self.labels = tf.constant(pictures["labels"], tf.int32)
            self.systems = tf.constant(pictures["systems"] + pictures["labels"].max() + 1, tf.int32)
        self.num_classes = int(tf.reduce_max(self.systems)) + 1
        self.seed = seed

    def steps(self, start: int, stop: int, phase: Phase) -> tf.data.Dataset:
        """The batches of these steps."""

        def order(step: tf.Tensor, count: int, batch: int, kind: int) -> tf.Tensor:
            turns, place = step // (count // batch), step % (count // batch)  # one permutation after the other
            seed = tf.stack([self.seed, 2 * tf.cast(turns, tf.int32) + kind])
            index = place * batch + tf.range(batch, dtype=tf.int64)
            return tf.random.experimental.index_shuffle(index, seed, count - 1)

        def batch(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            i = order(step, len(self.photos), BATCH - phase.num_fractals, 0)
            j = order(step, len(self.fractals), phase.num_fractals, 1)
            images = tf.concat([tf.gather(self.photos, i), tf.gather(self.fractals, j)], 0)
            labels = tf.concat([tf.gather(self.labels, i), tf.gather(self.systems, j)], 0)
            seed = tf.stack([self.seed, tf.cast(step, tf.int32) * 100])
            return augment(tf.cast(images, tf.float32), phase, seed), labels

        return tf.data.Dataset.range(start, stop).map(batch, num_parallel_calls=1).prefetch(4)


class FusedNormalization(keras.layers.BatchNormalization):
    """Keras's batch norm by TensorFlow's fused kernel, which takes less time on CPUs than Keras's parts."""

    def call(self, x: tf.Tensor, training: bool | None = None, mask: None = None) -> tf.Tensor:
        """Normalise with the batch's statistics in training, with the moving ones otherwise."""
        if not training:
            return super().call(x, training=False)
        y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=x, scale=self.gamma, offset=self.beta, mean=[], variance=[], epsilon=self.epsilon, is_training=True
        )
        count = tf.cast(tf.size(x) / tf.shape(x)[-1], tf.float32)
        for moving, new in ((self.moving_mean, mean), (self.moving_variance, variance * (count - 1) / count)):
            moving.assign(moving * self.momentum + tf.stop_gradient(new) * (1 - self.momentum))
        return y


def build(num_classes: int, momentum: float = 0.97) -> keras.Model:
    """Raw pictures in, logits out; the backbone is its layer "backbone"."""
    # Keras's MobileNetV2 has batch-norm momentum 0.999: after so short a training its statistics would lag behind.
    backbone = keras.applications.MobileNetV2(
        alpha=0.35, include_top=False, weights=None, input_shape=(None, None, 3), pooling="avg", name="backbone"
    )

    def kept(layer: keras.Layer) -> keras.Layer:
        kind, config = type(layer), layer.get_config()
        norm = kind is keras.layers.BatchNormalization
        return FusedNormalization.from_config(config | {"momentum": momentum}) if norm else kind.from_config(config)

    backbone = keras.models.clone_model(backbone, clone_function=kept)
    layers = [keras.Input((None, None, 3)), keras.layers.Rescaling(1 / 127.5, offset=-1), backbone]
    return keras.Sequential([*layers, keras.layers.Dense(num_classes)])


class Cosines(keras.optimizers.schedules.LearningRateSchedule):
    """One warm-up and cosine after the other, each beginning with a phase that has a peak."""

    def __init__(self, phases: Sequence[Phase]) -> None:
        """Lay them out; the first phase has a peak."""
        begins = [k for k, phase in enumerate(phases) if phase.peak]
        self.parts = []
        for first, end in zip(begins, [*begins[1:], len(phases)], strict=True):
            steps = sum(phase.steps for phase in phases[first:end])
            warm_up = min(WARM_UP, steps // 10)
            cosine = keras.optimizers.schedules.CosineDecay(
                1e-5, steps - warm_up, warmup_target=phases[first].peak, warmup_steps=warm_up
            )
            self.parts.append((sum(phase.steps for phase in phases[:first]), cosine))

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Get the learning rate of a step."""
        step, rate = tf.cast(step, tf.float32), 0.0
        for begin, cosine in self.parts:
            rate = tf.where(step >= begin, cosine(tf.maximum(step - begin, 0.0)), rate)
        return rate


class Checkpoint(keras.callbacks.Callback):
    """Weights, moments and step after every epoch, in one file that is whole or not there."""

    def __init__(self, path: Path) -> None:
        """Write to this file."""
        super().__init__()
        self.path = path

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:  # noqa: D102
        partial = self.path.with_name(f"partial-{self.path.name}")
        self.model.save_weights(partial)
        partial.replace(self.path)


def train(batches: Batches, run: Path, phases: Sequence[Phase] = PHASES, epoch: int = EPOCH) -> keras.Model:
    """The trained model; goes on where a run in this folder stopped."""
    model = build(batches.num_classes)
    optimizer = keras.optimizers.AdamW(Cosines(phases), weight_decay=0.02, clipnorm=5.0)
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    optimizer.build(model.trainable_variables)
    if (latest := run / "latest.weights.h5").exists():
        model.load_weights(latest)
    begun = 0
    for phase in phases:
        done = max(begun, int(optimizer.iterations))
        if begun + phase.steps > done:
            model.fit(
                batches.steps(done, begun + phase.steps, phase),
                steps_per_epoch=epoch,
                initial_epoch=done // epoch,
                epochs=(begun + phase.steps) // epoch,
                verbose=2,
                callbacks=[Checkpoint(latest), keras.callbacks.CSVLogger(run / "history.csv", append=True)],
            )
        begun += phase.steps
    return model


def export(model: keras.Model, path: Path) -> None:
    """Write the backbone as float16. Its batch-norm statistics have a momentum of 0.97 and so have settled."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = model.get_layer("backbone").weights
    arrays = {f"{i:03d} {v.path.split('/', 1)[-1]}": v.numpy().astype(np.float16) for i, v in enumerate(weights)}
    np.savez_compressed(path, **arrays)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {sum(a.size for a in arrays.values())} weights")


def main() -> None:
    """Train, or go on training, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny-imagenet", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="folder of pictures and checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--times", type=int, default=1, help="how many times the steps")
    parser.add_argument("--export", type=Path, required=True, help="write the backbone's weights here")
    arguments = parser.parse_args()
    arguments.run.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(arguments.seed)
    pictures = load_pictures(arguments.tiny_imagenet, arguments.run / "pictures.npz")
    phases = [replace(phase, steps=arguments.times * phase.steps) for phase in PHASES]
    export(train(Batches(pictures, arguments.seed), arguments.run, phases), arguments.export)


if __name__ == "__main__":
    main()
