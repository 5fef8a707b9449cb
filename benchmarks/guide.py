"""Ours against a recipe after the Keras guide and against a linear probe: accuracy over seeds and wall time.

    python benchmarks/guide.py DATA/hymenoptera DATA/flowers DATA/chest_xray_pneumonia [--seeds 3]

The peer is after "Transfer learning & fine-tuning" on keras.io; epochs, batches and the lack of a cache are ours, as
are the backbone (MobileNetV2 alpha 0.35 at 224 px, the smallest with genuine weights) and the data: head on a frozen
base called with `training=False`, dropout 0.2, flip and rotation, Adam 1e-3 for 10 epochs; then `base.trainable =
True`, Adam 1e-5 for 10 epochs; the state after the last epoch counts. Ours is `python -m tlkeras fit` as installed, and
the probe of the last stage is the same with `--strategy probe`. All are whole processes, imports and reading included,
run in turn. The ImageNet weights must be in KERAS_HOME. Accuracy is on the folder's validation pictures, by which ours
also chooses how far fine-tuning goes, so it flatters; where there is a test split, the accuracy on it is printed too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
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
        options = f"--backbone MobileNetV2 --alpha 0.35 --image-size 224 --weights imagenet --strategy {strategy}"
        command = ["-m", "tlkeras", "fit", folder, *options.split(), "--seed", str(seed), "--out", f"{scratch}/run"]
        started = time.perf_counter()
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
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

    ways = ("guide", "probe", arguments.strategy)
    runs: dict[str, dict[str, list[dict]]] = {}
    for folder in arguments.folders:
        for seed in range(arguments.seeds):
            for way in dict.fromkeys(ways):
                how = (run_peer, folder, seed) if way == "guide" else (run_ours, folder, seed, way)
                row = once(f"{folder.name} {way} {seed}", *how)
                runs.setdefault(folder.name, {}).setdefault(way, []).append(row)
    report(runs, ways, arguments.json)


def report(runs: dict[str, dict[str, list[dict]]], ways: tuple[str, str, str], as_json: bool) -> None:
    """Print the table of accuracies and seconds, and the claims."""
    print(f"\n{'':33}" + "".join(f"{way:>16}" for way in ways) + f"{'ours/guide':>12}")
    for name, found in runs.items():
        for figure in ("validation", "test", "seconds"):
            if found["guide"][0][figure] is None:
                continue
            values = [mean(row[figure] for row in found[way]) for way in ways]
            scale, unit = (1, "s") if figure == "seconds" else (100, "%")
            line = f"{name[:21]:22}{figure:11}" + "".join(f"{scale * value:15.1f}{unit}" for value in values)
            print(line + (f"{values[2] / values[0]:12.2f}" if figure == "seconds" else ""))
    accuracy = {way: [100 * mean(row["validation"] for row in found[way]) for found in runs.values()] for way in ways}
    shares = [mean(row["seconds"] for row in found[ways[2]]) / mean(row["seconds"] for row in found["guide"])
              for found in runs.values()]  # fmt: skip
    ours = mean(accuracy[ways[2]])
    claims = [
        (f"{name}: validation accuracy (%) of fit against the guide's recipe, points", mine, theirs, 0.0)
        for name, mine, theirs in zip(runs, accuracy[ways[2]], accuracy["guide"], strict=True)
    ]
    claims.append(("mean over sets, against the guide's recipe, points", ours, mean(accuracy["guide"]), 3.0))
    claims.append(("mean over sets, against the probe of the last stage, points", ours, mean(accuracy["probe"]), 1.0))
    for claim, mine, theirs, goal in claims:
        if as_json:
            print(json.dumps({"claim": claim, "ours": mine, "peer": theirs, "ratio": mine - theirs, "goal": goal,
                              "holds": mine - theirs >= goal}))  # fmt: skip
        else:
            print(f"{mine - theirs:+8.1f} (goal {goal:+.0f})  {mine:.1f} to {theirs:.1f} %: {claim}")
    if as_json:
        seconds = [mean(row["seconds"] for found in runs.values() for row in found[way]) for way in (ways[2], "guide")]
        print(json.dumps({"claim": "mean share of the guide's time", "ours": seconds[0], "peer": seconds[1],
                          "ratio": mean(shares), "goal": 0.2, "holds": mean(shares) <= 0.2}))  # fmt: skip
    else:
        print(f"{mean(shares):8.2f} (goal 0.20)  mean share of the guide's time")


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
