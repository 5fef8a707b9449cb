"""Which recipe makes the better embedded backbone? Each trains MobileNetV2 alpha 0.35 from random weights.

    python -m benchmarks recipes --tiny-imagenet DIR --folders DIR DIR DIR [--budget 960000] [--seeds 3] [--log FILE]

All have one budget, the number of pictures that go through the network: a contrastive step sees each picture twice,
so it has half the steps. 64 px, `tl.pretrain`; 60,000 photographs (Tiny ImageNet, 200 classes), 48,000 fractals (400
systems), or both. The judge is that of `embedded.py`: linear probes on pooled features at 96 px. Each finished run is
a line of --log, so the same command goes on where it stopped; `benchmarks/recipes-240000.jsonl` holds what was run with
a quarter of the budget, eight quiet minutes a run on two cores. A small budget says nothing: after 48,000 pictures (375
steps) features learnt from labels, of fractals or of photographs, were *worse* than random ones on flowers, ants and
bees and X-rays (one seed). 960,000 are what earlier embedded weights saw in their first run. A run need not come out
again to the digit: labels of fractals, seed 0, gave 76.2 and 71.3 % on unseen fractals on two days. Nobody looked for
the cause; on one machine thirty steps gave the same weights to the bit in two processes.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import embedded
import keras
import numpy as np
from pretrain_embedded import load_pictures

import tlkeras as tl

SIZE, BATCH = 64, 128
RECIPES = {
    "labels of fractals": ("fractals", "labels"),
    "labels of photographs": ("photographs", "labels"),
    "labels of both": ("both", "labels"),
    "SimCLR on photographs": ("photographs", "SimCLR"),
    "SimCLR on both": ("both", "SimCLR"),
    "VICReg on photographs": ("photographs", "VICReg"),
}


def train(recipe: str, pictures: dict[str, np.ndarray], budget: int, seed: int) -> list[np.ndarray]:
    """The weights that a recipe makes."""
    source, method = RECIPES[recipe]
    photographs, fractals = (pictures["photos"], pictures["labels"]), (pictures["fractals"], pictures["systems"])
    images, labels = fractals if source == "fractals" else photographs
    if source == "both":
        images = np.concatenate([images, fractals[0]])
        labels = np.concatenate([labels, labels.max() + 1 + fractals[1]])
    steps = budget // BATCH if method == "labels" else budget // (2 * BATCH)
    task = {"labels": lambda: tl.Labels(labels), "SimCLR": tl.SimCLR, "VICReg": tl.VICReg}[method]()
    keras.utils.set_random_seed(seed)
    backbone = tl.load_backbone("MobileNetV2", weights=None, alpha=0.35, image_size=SIZE)
    settings = tl.Pretraining(steps=steps, batch_size=BATCH, checks=1, seed=seed, verbose=0)
    return tl.pretrain(backbone, images, task, settings=settings).backbone.model.get_weights()


def judge(weights, targets: dict, seed: int) -> dict[str, float]:
    """Accuracy on each target, in per cent."""
    return {name: embedded.accuracy(embedded.features(weights, images), *rest, seed)
            for name, (images, *rest) in targets.items()}  # fmt: skip


def main() -> None:
    """Run what is missing and print a row a recipe."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny-imagenet", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("pictures.npz"), help="where decoded pictures are kept")
    parser.add_argument("--folders", nargs="*", type=Path, default=[])
    parser.add_argument("--budget", type=int, default=960_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--log", type=Path, default=Path("recipes.jsonl"))
    arguments = parser.parse_args()
    lines = [json.loads(line) for line in arguments.log.read_text().splitlines()] if arguments.log.exists() else []
    done = {(line["recipe"], line["budget"], line["seed"]): line["accuracy"] for line in lines}
    pictures, targets = None, embedded.targets_of(arguments.folders)
    rows = ["random weights", *arguments.recipes, "ImageNet"]
    for seed in range(arguments.seeds):
        for recipe in rows:
            if set(targets) <= set(done.get(key := (recipe, arguments.budget, seed), {})):
                continue
            if recipe in RECIPES:
                pictures = pictures or load_pictures(arguments.tiny_imagenet, arguments.cache)
                weights = train(recipe, pictures, arguments.budget, seed)
            else:
                keras.utils.set_random_seed(seed)
                weights = "imagenet" if recipe == "ImageNet" else None
            done[key] = judge(weights, targets, seed)
            line = {"recipe": recipe, "budget": arguments.budget, "seed": seed, "accuracy": done[key]}
            with arguments.log.open("a") as log:
                log.write(json.dumps(line) + "\n")
            print(line, flush=True)
    print(f"\n{'accuracy (%)':24}" + "".join(f"{name[:16]:>24}" for name in targets) + f"{'mean':>8}")
    for recipe in rows:
        runs = [done[recipe, arguments.budget, seed] for seed in range(arguments.seeds)]
        values = np.array([[run[name] for name in targets] for run in runs])  # (seeds, targets)
        cells = [f"{v.mean():8.1f} ({v.min():.1f} to {v.max():.1f})".rjust(24) for v in values.T]
        print(f"{recipe:24}" + "".join(cells) + f"{values.mean():8.1f}")


if __name__ == "__main__":
    main()
