"""Train the embedded backbone: MobileNetV2 alpha 0.35, from random weights, on photographs and fractals.

    python benchmarks/pretrain_embedded.py --tiny-imagenet DIR --run A
    python benchmarks/pretrain_embedded.py --tiny-imagenet DIR --run B --start A --steps 2500 --peak 1e-3 --fractals 12
    python benchmarks/pretrain_embedded.py --tiny-imagenet DIR --run C --start b.npz --size 96 --steps 4000 \
        --peak 1.5e-3
    python benchmarks/pretrain_embedded.py --tiny-imagenet DIR --run D --start c.npz --size 96 --steps 4000 \
        --peak 1.5e-3 --fractals 4
    python benchmarks/pretrain_embedded.py --tiny-imagenet DIR --run E --start D --size 96 --steps 6000 \
        --peak 2e-3 --fractals 4
    python benchmarks/pretrain_embedded.py --run E --export tlkeras/embedded.npz

Tiny ImageNet (Stanford CS231n, 200 classes at 64 px, http://cs231n.stanford.edu/tiny-imagenet-200.zip) may be
an unpacked `wnid/**/*.JPEG` tree or a folder of zips. One softmax tells 200 photographed classes and 400
fractal systems apart; every batch of 128 holds 96 photographs and 32 fractals, and in later
runs, for batch-norm statistics nearer to photographs, 116 and 12, then 124 and 4. `--size` is the side at which
the network sees them. Started from a run, training goes on with its weights; started from an
exported file, which has no head, a new head is trained first. Start it again and it goes on
from the last 250 steps. At 64 px 7,500 steps take about 30 minutes alone on two cores.
"""

from __future__ import annotations

import argparse
import io
import os
import zipfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from tlkeras.fractals import make_fractals

SIZE, SYSTEMS, PICTURES, BATCH = 64, 400, 120, 128
BLUR = np.repeat(np.outer([1, 2, 1], [1, 2, 1])[:, :, None, None] / 16, 3, axis=2).astype(np.float32)


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
    if not cache.exists():
        images, labels, classes = read_photographs(tiny_imagenet)
        fractals, systems = make_fractals(SYSTEMS, PICTURES, image_size=SIZE, family=0)
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial = cache.with_suffix(".partial.npz")
        np.savez(partial, photos=images, labels=labels, classes=classes, fractals=fractals, systems=systems)
        partial.replace(cache)
    with np.load(cache) as stored:
        return {key: stored[key] for key in stored.files}


def batches(
    pictures: dict[str, np.ndarray], *, num_fractals: int, size: int = SIZE, sharpen: float = 2.0, seed: int = 0
) -> tf.data.Dataset:
    """Endless batches of (images in 0-255, label in 0..599): crops, flips, light, sharpness, a tenth of them grey."""
    with tf.device("cpu"):
        photos, fractals = tf.constant(pictures["photos"]), tf.constant(pictures["fractals"])
        labels = tf.constant(pictures["labels"], tf.int32)
        systems = tf.constant(pictures["systems"] + pictures["labels"].max() + 1, tf.int32)
    num_photos = BATCH - num_fractals

    def order(count: int, batch: int, seed: int) -> tf.data.Dataset:
        return tf.data.Dataset.range(count).shuffle(count, seed=seed).repeat().batch(batch)

    def gather(i: tf.Tensor, j: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        images = tf.concat([tf.gather(photos, i), tf.gather(fractals, j)], 0)
        label = tf.concat([tf.gather(labels, i), tf.gather(systems, j)], 0)
        images = tf.cast(images, tf.float32)
        side = tf.sqrt(tf.random.uniform([BATCH], 0.5, 1.0))
        aspect = tf.exp(tf.random.uniform([BATCH], -0.2, 0.2))
        height, width = tf.minimum(side * aspect, 1.0), tf.minimum(side / aspect, 1.0)
        top = tf.random.uniform([BATCH]) * (1 - height)
        left = tf.random.uniform([BATCH]) * (1 - width)
        flip = tf.random.uniform([BATCH]) < 0.5
        x1, x2 = tf.where(flip, left + width, left), tf.where(flip, left, left + width)
        boxes = tf.stack([top, x1, top + height, x2], 1)
        images = tf.image.crop_and_resize(images, boxes, tf.range(BATCH), [size, size])
        # Enlarged pictures are softer than any that the network will meet: sharpen them by a random amount.
        amount = tf.random.uniform([BATCH, 1, 1, 1], 0.0, sharpen)
        images += amount * (images - tf.nn.depthwise_conv2d(images, BLUR, [1, 1, 1, 1], "SAME"))
        grey = tf.reduce_mean(images, axis=-1, keepdims=True)
        images = tf.where(tf.random.uniform([BATCH, 1, 1, 1]) < 0.1, grey, images)
        mean = tf.reduce_mean(images, axis=[1, 2, 3], keepdims=True)
        images = (images - mean) * tf.random.uniform([BATCH, 1, 1, 1], 0.7, 1.3) + mean
        images = tf.clip_by_value(images * tf.random.uniform([BATCH, 1, 1, 3], 0.8, 1.2), 0, 255)
        return images, label

    pairs = tf.data.Dataset.zip(order(len(pictures["photos"]), num_photos, seed),
                                order(len(pictures["fractals"]), num_fractals, seed + 1))  # fmt: skip
    return pairs.map(gather, num_parallel_calls=1).prefetch(4)


def build(num_classes: int, momentum: float = 0.97) -> keras.Model:
    # Keras's MobileNetV2 has batch-norm momentum 0.999: after so short a training its statistics would lag behind.
    backbone = keras.applications.MobileNetV2(
        alpha=0.35, include_top=False, weights=None, input_shape=(None, None, 3), pooling="avg"
    )
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = momentum
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    return keras.Model(inputs, keras.layers.Dense(num_classes)(backbone(x)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny-imagenet", type=Path)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=7_500)
    parser.add_argument("--peak", type=float, default=2.5e-3, help="learning rate")
    parser.add_argument("--fractals", type=int, default=32, help="of the 128 pictures of a batch")
    parser.add_argument("--size", type=int, default=SIZE, help="side of the pictures in training")
    parser.add_argument("--sharpen", type=float, default=2.0, help="the most by which pictures are sharpened")
    parser.add_argument("--start", type=Path, help="the run, or the exported file, whose weights to start from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--export", type=Path, help="write the backbone's weights here")
    arguments = parser.parse_args()
    keras.utils.set_random_seed(arguments.seed)
    pictures = load_pictures(arguments.tiny_imagenet, arguments.run / "pictures.npz")
    model = build(int(pictures["labels"].max() + 1 + pictures["systems"].max() + 1))
    if arguments.export:
        model.load_weights(arguments.run / "latest.weights.h5")
        export(model, arguments.export)
        return
    data = batches(
        pictures, num_fractals=arguments.fractals, size=arguments.size, sharpen=arguments.sharpen, seed=arguments.seed
    )
    if arguments.start and arguments.start.suffix == ".npz":
        start_from_backbone(model, arguments.start, data)
    elif arguments.start:
        model.load_weights(arguments.start / "latest.weights.h5")
    per_epoch = 250
    schedule = keras.optimizers.schedules.CosineDecay(
        1e-5, arguments.steps - 500, warmup_target=arguments.peak, warmup_steps=500
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.02, clipnorm=5.0)
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    model.compile(
        optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"], jit_compile=False
    )
    model.fit(
        data,
        steps_per_epoch=per_epoch,
        epochs=arguments.steps // per_epoch,
        verbose=2,
        callbacks=[
            keras.callbacks.BackupAndRestore(arguments.run / "backup"),
            keras.callbacks.ModelCheckpoint(arguments.run / "latest.weights.h5", save_weights_only=True),
            keras.callbacks.CSVLogger(arguments.run / "history.csv", append=True),
        ],
    )


def start_from_backbone(model: keras.Model, path: Path, data: tf.data.Dataset) -> None:
    """Put an exported backbone in and train the head for 300 steps on it alone: transfer to itself."""
    backbone = model.layers[2]
    with np.load(path) as stored:
        backbone.set_weights([stored[key].astype(np.float32) for key in sorted(stored.files)])
    backbone.trainable = False
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"], jit_compile=False)
    model.fit(data, steps_per_epoch=300, verbose=2)
    backbone.trainable = True


def export(model: keras.Model, path: Path) -> None:
    """Write the backbone as float16. Its batch-norm statistics have a momentum of 0.97 and so have settled."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = model.layers[2].weights
    arrays = {f"{i:03d} {v.path.split('/', 1)[-1]}": v.numpy().astype(np.float16) for i, v in enumerate(weights)}
    np.savez_compressed(path, **arrays)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {sum(a.size for a in arrays.values())} weights")


if __name__ == "__main__":
    main()
