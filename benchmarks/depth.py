"""Does far data want an earlier stage, and do H-score and LogME rank stages as accuracy does?

    python benchmarks/depth.py DATA/hymenoptera DATA/flowers DATA/chest_xray_pneumonia [--resamples 10] [--json]

For each folder and each of two backbones with ImageNet weights in KERAS_HOME (MobileNetV2 alpha 0.35, MobileNet alpha
0.25, 224 px, float32): softmax regression on the pooled features of every stage, over resamples of the training and
validation pictures together, patients kept on one side; corrected resampled t-test of the best stage against the last.
Then Kendall's tau between the two scores, taken on all those pictures, and the measured accuracy over the stages.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from scipy.stats import kendalltau

import tlkeras as tl

BACKBONES = {"MobileNetV2": 0.35, "MobileNet": 0.25}
PATIENT = re.compile(r"(person\d+|(?:NORMAL2-)?IM-\d+)")


def read(folder: Path) -> tuple[tl.Data, list[str] | None]:
    """The folder, and the patient of each training and validation picture where file names tell."""
    data = tl.load_folder(folder, image_size=224)
    names = [Path(path).name for split in ("train", "validation") for path in data.paths[split]]
    patients = [PATIENT.match(name) for name in names]
    known = sum(match is not None for match in patients) > len(names) / 2
    return data, [
        match.group() if match else name for match, name in zip(patients, names, strict=True)
    ] if known else None


def join(parts: list[tl.Features]) -> tl.Features:
    stages = {name: np.concatenate([part.stages[name] for part in parts]) for name in parts[0].stages}
    return tl.Features(stages, np.concatenate([part.labels for part in parts]), parts[0].engine, 0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--resamples", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="three resamples")
    parser.add_argument("--json", action="store_true", help="one object a line")
    arguments = parser.parse_args()
    arguments.resamples = 3 if arguments.quick else arguments.resamples
    for folder in arguments.folders:
        data, patients = read(folder)
        for name, alpha in BACKBONES.items():
            backbone = tl.load_backbone(name, weights="imagenet", alpha=alpha, image_size=224)
            features = join([
                tl.extract_features(backbone, data.ordered(split), stages="all") for split in ("train", "validation")
            ])  # fmt: skip
            table = tl.probe(features, groups=patients, num_resamples=arguments.resamples)
            accuracy = [interval.value for interval in table.intervals.values()]
            scores = {score.__name__: score for score in (tl.h_score, tl.log_me)}
            taus = {
                key: float(
                    kendalltau([score(v, features.labels) for v in features.stages.values()], accuracy).statistic
                )
                for key, score in scores.items()
            }
            if arguments.json:
                print(
                    json.dumps({"data": folder.name, "backbone": name, **table.to_dict(), "kendall_tau": taus}),
                    flush=True,
                )
                continue
            shown = "  ".join(f"{100 * value:.1f}" for value in accuracy)
            print(f"{folder.name}, {name} {alpha}: {shown}")
            print(f"    {str(table).splitlines()[-1]}")
            print(
                "    Kendall's tau over the stages: " + ", ".join(f"{k} {t:+.2f}" for k, t in taus.items()), flush=True
            )


if __name__ == "__main__":
    main()
