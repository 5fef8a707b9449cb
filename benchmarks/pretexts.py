"""Which pretext makes useful features? Each trains the same small network from the same random weights, without labels.

    python -m benchmarks pretexts --world fractals
    python -m benchmarks pretexts --world struck
    python -m benchmarks pretexts --world photographs --tiny-imagenet DIR --folders FLOWERS ANTS_AND_BEES

The judge is a linear probe (`fit_probe`) on the pooled features of labelled pictures that no pretext has seen (of ants
and bees it may have: they are ImageNet's), half of them to learn from. Seeds differ in weights, order, views and
division. "labels" is training on the pictures' own classes, what labels would have brought; "random" is the network
before any training. Each finished run is a line of --log, so the same command goes on where it was stopped. About 30 s
a run on one core.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from _sets import pixels_together

import tlkeras as tl
from tlkeras.pretraining import split_in_half

PRETEXTS = {
    "rotation": tl.Rotation,
    "colorization": tl.Colorization,
    "autoencoder": tl.Autoencoder,
    "denoising": lambda: tl.Autoencoder(noise=50.0),
    "SimCLR": tl.SimCLR,
    "VICReg": tl.VICReg,
}


def tasks(world: str, arguments: argparse.Namespace) -> tuple[np.ndarray, dict]:
    """Get the pictures to train on, and the pretexts."""
    size = arguments.size
    if world == "fractals":
        images, labels = tl.make_fractals(150, 30, image_size=size, family=2)
    elif world == "struck":
        things = tl.make_struck_objects(4500, image_size=size, seed=2)
        images, labels = things.images, 3 * things.materials + things.shapes
    else:
        from pretrain_embedded import read_photographs

        images, labels, _ = read_photographs(arguments.tiny_imagenet)
        some = np.random.default_rng(0).choice(len(images), 20_000, replace=False)
        images, labels = shrink(images[some], size), labels[some]
    known = {"labels": lambda: tl.Labels(labels), **PRETEXTS}
    if world == "struck":
        known["sound"] = lambda: tl.Sound(sounds=things.sounds)
    return images, known


def shrink(images: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([
        keras.ops.convert_to_numpy(keras.ops.image.resize(images[k : k + 500], (size, size), antialias=True)).round()
        for k in range(0, len(images), 500)
    ]).clip(0, 255).astype(np.uint8)  # fmt: skip


def targets(world: str, arguments: argparse.Namespace) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Get labelled pictures."""
    size = arguments.size
    if world == "photographs":
        loaded = {Path(path).name: tl.load_folder(path, image_size=size, split=tl.Split(near_duplicates=False))
                  for path in arguments.folders}  # fmt: skip
        return {name: pixels_together(data) for name, data in loaded.items()}
    things = tl.make_struck_objects(1000, image_size=size, seed=3)
    return {
        "unseen fractals": tl.make_fractals(10, 100, image_size=size, family=3),
        "materials of struck objects": (things.images, things.materials),
        "shapes of struck objects": (things.images, things.shapes),
    }


def accuracy(backbone: tl.Backbone, target: tuple[np.ndarray, np.ndarray], seed: int) -> float:
    (known, labels), (unknown, truth) = split_in_half(*target, seed)
    pooled = keras.layers.GlobalAveragePooling2D()(backbone.model.output)
    features = keras.Model(backbone.model.inputs[0], pooled)
    probe = tl.fit_probe(features.predict(known, verbose=0), labels)
    return float(np.mean(probe.predict(features.predict(unknown, verbose=0)) == truth))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world", choices=["fractals", "struck", "photographs"], default="fractals")
    parser.add_argument("--tiny-imagenet", type=Path)
    parser.add_argument("--folders", nargs="*", default=[])
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="these pretexts")
    parser.add_argument("--log", type=Path, default=Path("pretexts.jsonl"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.world == "photographs" and not (arguments.tiny_imagenet and arguments.folders):
        parser.error("photographs take --tiny-imagenet and --folders")
    if arguments.quick:
        arguments.steps, arguments.seeds, arguments.log = 10, 1, Path(os.devnull)
    lines = arguments.log.read_text().splitlines() if arguments.log.is_file() else []
    chosen = {key: getattr(arguments, key) for key in ("world", "size", "width", "steps", "batch_size")}
    rows = [row for row in map(json.loads, lines) if all(row.get(key) == value for key, value in chosen.items())]
    images, known = tasks(arguments.world, arguments)
    judges = targets(arguments.world, arguments)
    for seed in range(arguments.seeds):
        for name in ["random", *known]:
            same = [row for row in rows if row["pretext"] == name and row["seed"] == seed]
            done = any(set(judges) <= set(row["accuracy"]) for row in same)
            if done or (arguments.only and name not in arguments.only):
                continue
            keras.utils.set_random_seed(seed)
            backbone = tl.small_backbone(arguments.size, width=arguments.width)
            row = {**chosen, "pretext": name, "seed": seed}
            if name != "random":
                settings = tl.Pretraining(
                    steps=arguments.steps, batch_size=arguments.batch_size, checks=1, seed=seed, verbose=0
                )
                pretrained = tl.pretrain(backbone, images, known[name](), settings=settings)
                row |= {key: pretrained.rows[-1][key] for key in ("loss", "spread", "rank", "seconds")}
            row["accuracy"] = {target: accuracy(backbone, pair, seed) for target, pair in judges.items()}
            rows.append(row)
            with open(arguments.log, "a") as file:
                file.write(json.dumps(row) + "\n")
            if not arguments.json:
                print({**row, "accuracy": {k: round(v, 3) for k, v in row["accuracy"].items()}}, flush=True)
    report(rows, list(judges), arguments)


def report(rows: list[dict], judges: list[str], arguments: argparse.Namespace) -> None:
    def values(name: str, target: str) -> np.ndarray:
        found = {row["seed"]: row for row in rows if row["pretext"] == name and target in row["accuracy"]}
        ordered = [found[seed] for seed in sorted(found)]
        return 100 * np.array([row["accuracy"][target] for row in ordered])

    for name in dict.fromkeys(row["pretext"] for row in rows):
        for target in judges:
            ours, peer = values(name, target), values("random", target)
            line = {
                "claim": f"{name} on {arguments.world}, probe on {target}",
                "ours": ours.mean(),
                "peer": peer.mean(),
            }
            if len(ours) == len(peer) > 1:
                gain = tl.mean_interval(ours - peer)
                line |= {"gain": gain.value, "low": gain.low, "high": gain.high, "holds": bool(gain.low > 0)}
            line = {key: round(float(value), 1) if isinstance(value, float) else value for key, value in line.items()}
            print(json.dumps(line) if arguments.json else line)


if __name__ == "__main__":
    main()
