"""What several scripts share: the networks, what belongs together, and a folder without its test/ as one set."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

import tlkeras as tl

SIDES = ("train", "validation")
BACKBONES = {"MobileNetV2": 0.35, "MobileNet": 0.25}  # with their alpha
PATIENT = re.compile(r"person\d+|(?:NORMAL2-)?IM-\d+")  # how the chest X-rays are named


def groups_of(paths: Iterable[str]) -> list[str]:
    """The patient of each picture where its file's name tells, otherwise the name."""
    names = [Path(path).name for path in paths]
    patients = [PATIENT.match(name) for name in names]
    return [match.group() if match else name for match, name in zip(patients, names, strict=True)]


def groups_together(data: tl.Data) -> list[str]:
    """The groups of the training pictures, then of the validation pictures."""
    return groups_of(path for side in SIDES for path in data.paths[side])


def pixels_together(data: tl.Data) -> tuple[np.ndarray, np.ndarray]:
    """Pictures and labels, the training pictures first."""
    images = np.concatenate([data.pixels.read(data.index[side]) for side in SIDES])
    return images, np.concatenate([data.labels[side] for side in SIDES])


def features_together(data: tl.Data, backbone: tl.Backbone, stages: str = "last") -> tl.Features:
    """Features of the training pictures, then of the validation pictures."""
    parts = [tl.extract_features(backbone, data.pictures(side), stages=stages) for side in SIDES]
    stacked = {name: np.concatenate([part.stages[name] for part in parts]) for name in parts[0].stages}
    labels = np.concatenate([part.labels for part in parts])
    return tl.Features(stacked, labels, parts[0].engine, sum(part.computed for part in parts))
