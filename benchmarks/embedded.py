"""What the embedded weights are worth: linear probes against random and ImageNet weights.

    python benchmarks/embedded.py [--folders FLOWERS ANTS_AND_BEES X_RAYS] [--weights FILE ...] [--image-size 96]

MobileNetV2 alpha 0.35, pooled last-stage features, softmax regression with a cross-validated penalty. Unseen
fractals: 20 systems of family 1, 20 pictures each to learn from and 20 to test. Cluttered digits: 40 and 40 a class.
Folders: all their pictures but test/, divided anew for each seed in the same proportions, patients kept together.
Random weights are drawn anew for each seed.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from _sets import groups_of
from sklearn.model_selection import StratifiedGroupKFold

from tlkeras.backbones import load_backbone
from tlkeras.fractals import make_digits, make_fractals
from tlkeras.heads import build_classifier
from tlkeras.intervals import mean_interval
from tlkeras.probes import fit_probe
from tlkeras.scan import scan_folder

SIZE = 96


def features(weights, images: np.ndarray) -> np.ndarray:
    """Pooled last-stage features, (pictures, 1280), by these weights: what `load_backbone` takes, or arrays."""
    arrays = weights if isinstance(weights, list) else None
    backbone = load_backbone("MobileNetV2", weights=None if arrays else weights, alpha=0.35, image_size=images.shape[1])
    if arrays:
        backbone.model.set_weights(arrays)
    model = build_classifier(backbone, 2)
    network = keras.Model(model.inputs, model.get_layer("pool").output)
    return network.predict(images.astype("float32"), batch_size=64, verbose=0)


def read(folder: Path, image_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """All pictures of a folder, labels, a group for each (patient where the name tells), share of validation."""
    scan = scan_folder(folder, image_size=image_size)
    chosen = [k for k, picture in enumerate(scan.pictures) if picture.split != "test"]
    names = [scan.pictures[k].class_name for k in chosen]
    groups = np.unique(groups_of(scan.pictures[k].path for k in chosen), return_inverse=True)[1]
    share = np.mean([scan.pictures[k].split == "validation" for k in chosen])
    return scan.pixels[chosen], np.unique(names, return_inverse=True)[1], groups, share


def targets_of(folders: list[Path], image_size: int = SIZE) -> dict[str, tuple]:
    """For each target its pictures, labels, a group for each, and the share of the pictures that judge."""
    targets = {}
    images, labels = make_fractals(20, 40, image_size=image_size, family=1)
    targets["unseen fractals"] = images, labels, np.arange(len(labels)), 0.5
    images, labels = make_digits(80, image_size=image_size)
    targets["cluttered digits"] = images, labels, np.arange(len(labels)), 0.5
    return targets | {folder.name: read(folder, image_size) for folder in folders}


def accuracy(values: np.ndarray, labels: np.ndarray, groups: np.ndarray, share: float, seed: int) -> float:
    """In per cent, of a probe on one division of the pictures."""
    folds = StratifiedGroupKFold(round(1 / share), shuffle=True, random_state=seed)
    train, test = next(folds.split(values, labels, groups))
    return 100 * fit_probe(values[train], labels[train], seed=seed).score(values[test], labels[test])


def main() -> None:
    """Print a row a target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folders", nargs="*", type=Path, default=[])
    parser.add_argument("--weights", nargs="+", default=["embedded"], help="files to judge, a column each")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--image-size", type=int, default=SIZE)
    arguments = parser.parse_args()
    kinds = {"random": None} | {Path(file).stem: file for file in arguments.weights} | {"ImageNet": "imagenet"}
    print(f"{f'accuracy (%), {arguments.seeds} seeds':24}" + "".join(f"{kind:>24}" for kind in kinds))
    for name, (images, *rest) in targets_of(arguments.folders, arguments.image_size).items():
        cells = []
        for weights in kinds.values():
            accuracies, cached = [], None
            for seed in range(arguments.seeds):
                keras.utils.set_random_seed(seed)
                try:
                    values = features(None, images) if weights is None else cached
                    if values is None:
                        values = cached = features(weights, images)
                except OSError:
                    break
                accuracies.append(accuracy(values, *rest, seed))
            if not accuracies:
                cells.append(f"{'not in reach':>24}")
                continue
            spread = mean_interval(accuracies)
            cells.append(f"{spread.value:10.1f} ({min(accuracies):.1f} to {max(accuracies):.1f})".rjust(24))
        print(f"{name:24}" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
