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
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from _sets import BACKBONES, features_together, groups_together
from scipy.stats import kendalltau

import tlkeras as tl


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
        data = tl.load_folder(folder, image_size=224)
        for name, alpha in BACKBONES.items():
            backbone = tl.load_backbone(name, weights="imagenet", alpha=alpha, image_size=224)
            features = features_together(data, backbone, stages="all")
            table = tl.probe(features, groups=groups_together(data), num_resamples=arguments.resamples)
            accuracy = [interval.value for interval in table.intervals.values()]
            scores = {score.__name__: score for score in (tl.h_score, tl.log_me)}
            taus = {
                key: float(
                    kendalltau([score(v, features.labels) for v in features.stages.values()], accuracy).statistic
                )
                for key, score in scores.items()
            }
            if arguments.json:
                sure, last = 0.05 / (len(accuracy) - 1), 100 * accuracy[-1]  # it is the best of so many earlier ones
                claim = f"{folder.name}, {name}: is a stage before the last surely better? accuracy (%), p as the ratio"
                print(json.dumps({"claim": claim, "ours": 100 * max(accuracy), "peer": last, "ratio": table.p_value,
                                  "goal": sure, "holds": table.p_value < sure, **table.to_dict()}))  # fmt: skip
                for key, tau in taus.items():
                    claim = f"{folder.name}, {name}: Kendall's tau of {key} with accuracy over the stages"
                    print(json.dumps({"claim": claim, "ours": tau, "peer": None, "ratio": None, "goal": None,
                                      "holds": None}), flush=True)  # fmt: skip
                continue
            shown = "  ".join(f"{100 * value:.1f}" for value in accuracy)
            print(f"{folder.name}, {name} {alpha}: {shown}")
            print(f"    {str(table).splitlines()[-1]}")
            print(
                "    Kendall's tau over the stages: " + ", ".join(f"{k} {t:+.2f}" for k, t in taus.items()), flush=True
            )


if __name__ == "__main__":
    main()
