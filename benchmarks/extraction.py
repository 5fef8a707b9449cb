"""Features of a frozen network, from JPEG files: ours against `model.predict`, against the guide's head, and the bound.

    python benchmarks/extraction.py DATA/flowers [--repeats 3] [--json]

MobileNetV2 alpha 0.35 at 224 px, ImageNet weights from KERAS_HOME, float32 unless a row says otherwise. Each
measurement is a process of its own, timed after its imports; ours and the peer take turns, and medians are compared.
Features are taken of a backbone that Keras need not build (`load_backbone(…, build=False)`), since its engine was kept
by the processes before the first turn; one row says what they cost with `build=True`. A head gets a built one.
A row a claim: what was measured, ours, the peer's, their ratio, the goal, and whether it holds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

COMMON = """
import json, os, sys, time
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, numpy as np, tensorflow as tf
from pathlib import Path
folder = Path(sys.argv[1])
def done(**figures):
    print(json.dumps({"seconds": time.perf_counter() - started, **figures}))
"""
OURS = (
    COMMON
    + """
import tlkeras as tl
tl.load_folder, tl.Split, tl.extract_features, tl.fit_probe, tl.load_backbone
stages, engine, cache = sys.argv[2], sys.argv[3], sys.argv[4] == "cache"
def features(backbone=None):
    data = tl.load_folder(folder, image_size=224, split=tl.Split(near_duplicates=False))  # nor does the peer look
    backbone = backbone or tl.load_backbone(
        "MobileNetV2", weights="imagenet", alpha=0.35, image_size=224, build=sys.argv[5] in ("probe", "built"))
    parts = [tl.extract_features(backbone, data.pictures(side), stages=stages, engine=engine, cache=cache)
             for side in ("train", "validation")]
    return backbone, *parts
started, accuracy = time.perf_counter(), None
backbone, train, held_out = features()
if sys.argv[5] == "probe":
    accuracy = tl.fit_probe(train.last, train.labels).score(held_out.last, held_out.labels)
found = {"seconds": time.perf_counter() - started, "accuracy": accuracy}
if sys.argv[5] == "warm":  # once more, network and engine in memory
    again = time.perf_counter()
    features(backbone)
    found["warm"] = time.perf_counter() - again
done(pictures=len(train.labels) + len(held_out.labels), **found)
"""
)
PREDICT = (
    COMMON
    + """
started = time.perf_counter()
base = keras.applications.MobileNetV2(
    alpha=0.35, weights="imagenet", include_top=False, pooling="avg", input_shape=(224, 224, 3))
inputs = keras.Input((224, 224, 3))
model = keras.Model(inputs, base(keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)))
pictures = 0
for split in [name for name in ("train", "val", "validation") if (folder / name).is_dir()]:  # what ours reads
    batches = keras.utils.image_dataset_from_directory(
        folder / split, image_size=(224, 224), shuffle=False, verbose=False)
    pictures += len(model.predict(batches, verbose=0))
done(pictures=pictures)
"""
)
GUIDE_HEAD = (
    COMMON
    + """
keras.utils.set_random_seed(0)
started = time.perf_counter()
read = keras.utils.image_dataset_from_directory
train, validation = (read(folder / name, image_size=(224, 224), seed=0, verbose=False) for name in ("train", "val"))
augment = keras.Sequential([keras.layers.RandomFlip("horizontal"), keras.layers.RandomRotation(0.1)])
train = train.map(lambda x, y: (augment(x, training=True), y)).prefetch(2)
base = keras.applications.MobileNetV2(alpha=0.35, weights="imagenet", input_shape=(224, 224, 3), include_top=False)
base.trainable = False
inputs = keras.Input((224, 224, 3))
x = keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)
x = keras.layers.Dropout(0.2)(keras.layers.GlobalAveragePooling2D()(base(x, training=False)))
model = keras.Model(inputs, keras.layers.Dense(len(validation.class_names))(x))
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.Adam(), loss, metrics=["accuracy"])
model.fit(train, epochs=10, validation_data=validation, verbose=0)
done(accuracy=model.evaluate(validation, verbose=0)[1])
"""
)
BOUND = (
    COMMON
    + """
import tlkeras as tl
from tlkeras.engines import load_engine
from tlkeras.pictures import decode_picture
network = tl.load_backbone("MobileNetV2", weights="imagenet", alpha=0.35, image_size=224).model
network = keras.Model(network.inputs[0], keras.layers.GlobalAveragePooling2D()(network.output))
files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
runner = load_engine(network, "openvino")
started = time.perf_counter()
pictures = np.stack([decode_picture(file, 224) for file in files])
decoding = time.perf_counter() - started
batches = [pictures[k : k + 32] for k in range(0, len(pictures), 32)]  # whole numbers, as they were decoded
list(runner.run(batches[:4]))
started = time.perf_counter()
list(runner.run(batches))
forward = time.perf_counter() - started
done(decoding=decoding, forward=forward, bound=decoding / os.cpu_count() + forward)
"""
)


def measure(script: str, folder: Path, *arguments: str, cache: Path) -> dict:
    environment = {**os.environ, "TLKERAS_CACHE": str(cache)}
    command = [sys.executable, "-c", script, str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def row(claim: str, ours: float, peer: float, goal: float, *, at_most: bool = False) -> dict:
    """Times in seconds, ours and the peer's; the ratio says how many times faster ours is."""
    ratio = peer / ours
    holds = ratio <= goal if at_most else ratio >= goal
    return {"claim": claim, "ours": round(ours, 2), "peer": round(peer, 2), "ratio": round(ratio, 2), "goal": goal,
            "holds": holds}  # fmt: skip


def compare(folder: Path, repeats: int) -> list[dict]:
    """Every claim, with medians over the repeats."""
    with tempfile.TemporaryDirectory() as scratch:
        warm = Path(scratch) / "engine"
        runs: dict[str, list[dict]] = {}

        def take(name: str, script: str, *arguments: str, cache: Path = warm) -> None:
            runs.setdefault(name, []).append(measure(script, folder, *arguments, cache=cache))

        for stages, engine in [("all", "auto"), ("last", "auto"), ("last", "openvino-bfloat16")]:  # kept from now on
            take("first", OURS, stages, engine, "", "")
        for repeat in range(repeats):
            fresh = Path(scratch) / f"cold{repeat}"
            take("ours", OURS, "last", "auto", "", "warm")
            take("predict", PREDICT)
            take("built", OURS, "last", "auto", "", "built")
            take("all stages", OURS, "all", "auto", "", "warm")
            take("reduced", OURS, "last", "openvino-bfloat16", "", "")
            take("bound", BOUND)
            take("head cold", OURS, "last", "auto", "cache", "probe", cache=fresh)
            take("head warm", OURS, "last", "auto", "cache", "probe", cache=fresh)
            take("guide's head", GUIDE_HEAD)

    def median(name: str, figure: str = "seconds") -> float:
        return statistics.median(run[figure] for run in runs[name])

    count = runs["ours"][0]["pictures"]
    rows = [
        row(f"extraction of {count} JPEG files, seconds; peer: image_dataset_from_directory + model.predict",
            median("ours"), median("predict"), 2.5),
        row("the same by a network that Keras builds first", median("built"), median("predict"), 2.5),
        row("the same in bfloat16, not built", median("reduced"), median("predict"), 4.0),
        row("once more, engine in memory; peer: what the cores allow (decoding shared out + bare OpenVINO)",
            median("ours", "warm"), median("bound", "bound"), 0.85),
        row("all stages instead of one, in the same way: share of the time that one takes",
            median("all stages", "warm"),
            median("ours", "warm"), 1 / 1.3),
        row("the head, nothing stored yet; peer: the guide's ten frozen epochs", median("head cold"),
            median("guide's head"), 5.0),
        row("the head, features stored", median("head warm"), median("guide's head"), 12.0),
    ]  # fmt: skip
    ours, guide = (100 * median(name, "accuracy") for name in ("head cold", "guide's head"))
    accuracy = {"claim": "accuracy of the head (%), one split, seed 0", "ours": round(ours, 1), "peer": round(guide, 1)}
    rows.append({**accuracy, "ratio": round(ours / guide, 3), "goal": 1.0, "holds": ours >= guide})
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="each measurement once")
    parser.add_argument("--json", action="store_true", help="one object a line")
    arguments = parser.parse_args()
    for line in compare(arguments.folder, 1 if arguments.quick else arguments.repeats):
        if arguments.json:
            print(json.dumps(line))
        else:
            verdict = f"goal {line['goal']:.2f}, {'holds' if line['holds'] else 'MISSED'}"
            print(f"{line['ratio']:8.2f} ({verdict})  {line['ours']} to {line['peer']}: {line['claim']}")


if __name__ == "__main__":
    main()
