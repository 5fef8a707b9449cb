"""Ours against the Keras guide's printed recipe, on folders of pictures: accuracy over seeds and wall time.

    python benchmarks/guide.py DATA/hymenoptera DATA/flowers DATA/chest_xray_pneumonia [--seeds 3]

The peer is "Transfer learning & fine-tuning" on keras.io, code as printed but for the backbone (MobileNetV2 alpha 0.35
at 224 px, the smallest with genuine weights) and the data: head on a frozen base called with `training=False`, dropout
0.2, flip and rotation, Adam 1e-3 for 10 epochs; then `base.trainable = True`, Adam 1e-5 for 10 epochs; the state after
the last epoch counts. Ours is `python -m tlkeras fit` as installed. Both are whole processes, imports and reading
included, run in turn. The ImageNet weights must be in KERAS_HOME. Accuracy is on the folder's validation pictures,
which ours also uses to choose the epoch; where there is a test split, the accuracy on it is printed too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PEER = """
import json, sys
import keras
from pathlib import Path
folder, seed = Path(sys.argv[1]), int(sys.argv[2])
keras.utils.set_random_seed(seed)
def read(*names):
    for name in names:
        if (folder / name).is_dir():
            return keras.utils.image_dataset_from_directory(folder / name, image_size=(224, 224), seed=seed)
train, validation, test = read("train"), read("val", "validation"), read("test")
classes = len(train.class_names)
augment = keras.Sequential([keras.layers.RandomFlip("horizontal"), keras.layers.RandomRotation(0.1)])
train = train.map(lambda x, y: (augment(x, training=True), y)).prefetch(2)
base = keras.applications.MobileNetV2(alpha=0.35, weights="imagenet", input_shape=(224, 224, 3), include_top=False)
base.trainable = False
inputs = keras.Input((224, 224, 3))
x = keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)
x = base(x, training=False)
x = keras.layers.GlobalAveragePooling2D()(x)
x = keras.layers.Dropout(0.2)(x)
model = keras.Model(inputs, keras.layers.Dense(classes)(x))
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.Adam(), loss, metrics=["accuracy"])
model.fit(train, epochs=10, validation_data=validation, verbose=0)
frozen = model.evaluate(validation, verbose=0)[1]
base.trainable = True
model.compile(keras.optimizers.Adam(1e-5), loss, metrics=["accuracy"])
model.fit(train, epochs=10, validation_data=validation, verbose=0)
result = {"frozen": frozen, "validation": model.evaluate(validation, verbose=0)[1]}
result["test"] = None if test is None else model.evaluate(test, verbose=0)[1]
print(json.dumps(result))
"""


def run_peer(folder: Path, seed: int) -> dict:
    """Train by the guide in a process of its own."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", PEER, folder, str(seed)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return {**json.loads(done.stdout.strip().splitlines()[-1]), "seconds": time.perf_counter() - started}


def run_ours(folder: Path, seed: int, strategy: str) -> dict:
    """Train by the command line in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        command = f"-m tlkeras fit {folder} --backbone MobileNetV2 --alpha 0.35 --image-size 224 --weights imagenet"
        command += f" --strategy {strategy} --seed {seed} --out {scratch}/run"
        started = time.perf_counter()
        done = subprocess.run([sys.executable, *command.split()], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        seconds = time.perf_counter() - started
        metrics = json.loads((Path(scratch) / "run" / "metrics.json").read_text())
    test = metrics["test"] and metrics["test"]["accuracy"]["value"]
    return {"validation": metrics["validation"]["accuracy"]["value"], "test": test, "seconds": seconds}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--strategy", default="probe+fine-tune")
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument("--json", action="store_true", help="end in one object for each claim")
    parser.add_argument("--results", type=Path, help="a JSON file to keep the runs in and to go on from")
    arguments = parser.parse_args()
    arguments.seeds = 1 if arguments.quick else arguments.seeds
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    kept = json.loads(arguments.results.read_text()) if arguments.results and arguments.results.exists() else {}

    def once(key: str, run, *rest) -> dict:
        if key not in kept:
            kept[key] = run(*rest)
            print(f"{key}: " + "  ".join(f"{k} {v:.3f}" for k, v in kept[key].items() if v is not None), flush=True)
            if arguments.results:
                arguments.results.write_text(json.dumps(kept, indent=1))
        return kept[key]

    runs = {}
    for folder in arguments.folders:
        for seed in range(arguments.seeds):
            peer = once(f"{folder.name} guide {seed}", run_peer, folder, seed)
            ours = once(f"{folder.name} {arguments.strategy} {seed}", run_ours, folder, seed, arguments.strategy)
            runs.setdefault(folder.name, []).append((peer, ours))

    def mean(values) -> float:
        values = list(values)
        return sum(values) / len(values)

    print(f"\n{'':22}{'guide':>8}{'ours':>8}{'points':>8}{'guide':>9}{'ours':>8}{'ours/guide':>12}")
    gains, ratios = [], []
    for name, pairs in runs.items():
        for split in ("validation", "test"):
            if pairs[0][0][split] is None:
                continue
            theirs, mine = (100 * mean(pair[k][split] for pair in pairs) for k in (0, 1))
            line = f"{name[:14]:15}{split[:6]:7}{theirs:8.1f}{mine:8.1f}{mine - theirs:+8.1f}"
            if split == "validation":
                times = [mean(pair[k]["seconds"] for pair in pairs) for k in (0, 1)]
                gains.append(mine - theirs)
                ratios.append(times[1] / times[0])
                line += f"{times[0]:8.0f}s{times[1]:7.0f}s{ratios[-1]:12.2f}"
            print(line)
    print(f"{'mean over sets':22}{'':16}{mean(gains):+8.1f}{'':17}{mean(ratios):12.2f}   ({arguments.seeds} seeds)")
    if arguments.json:
        for name, gain in [*zip(runs, gains, strict=True), ("mean over sets", mean(gains))]:
            goal = 2.0 if name == "mean over sets" else 0.0
            ours, theirs = (
                100 * mean(pair[k]["validation"] for key, pairs in runs.items() if name in (key, "mean over sets")
                           for pair in pairs) for k in (1, 0)
            )  # fmt: skip
            claim = f"{name}: validation accuracy (%) of fit against the guide's recipe, points"
            print(json.dumps({"claim": claim, "ours": ours, "peer": theirs, "ratio": gain, "goal": goal,
                              "holds": gain >= goal}))  # fmt: skip
        claim = "mean share of the guide's time"
        times = [mean(pair[k]["seconds"] for pairs in runs.values() for pair in pairs) for k in (1, 0)]
        print(json.dumps({"claim": claim, "ours": times[0], "peer": times[1], "ratio": mean(ratios), "goal": 1 / 3,
                          "holds": mean(ratios) <= 1 / 3}))  # fmt: skip


if __name__ == "__main__":
    main()
