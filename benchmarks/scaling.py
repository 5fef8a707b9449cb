"""Scaling the features before a linear probe: `fit_probe` against full standardising, by number of pictures.

    python -m benchmarks scaling --folders DATA/flowers DATA/hymenoptera DATA/chest_xray_pneumonia

Both are softmax regressions on the same pooled last-stage features; the peer is scikit-learn's usual pipeline of
`StandardScaler` and `LogisticRegression`, its C chosen from the same values by the same folds. Some pictures a class
are drawn from the training and validation pictures, and all others are judged but those of a learnt patient; ten draws,
the paired difference with its interval, and the seconds of processor time that both fits took, the choice of C included
(medians; one thread).
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from _sets import BACKBONES, features_together, groups_together
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from tlkeras.backbones import load_backbone
from tlkeras.intervals import mean_interval
from tlkeras.loaders import load_folder
from tlkeras.probes import PENALTIES, fit_probe
from tlkeras.splits import Split

AMOUNTS, DRAWS, SIZE = (3, 5, 10, 20, 100), range(10), 224


def fit_standardised(features: np.ndarray, labels: np.ndarray):
    """The peer."""
    grid = {"logisticregression__C": PENALTIES}
    folds = StratifiedKFold(min(5, np.bincount(labels).min()), shuffle=True, random_state=0)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500, tol=1e-3))
    with threadpool_limits(1, user_api="blas"):
        return GridSearchCV(pipeline, grid, cv=folds, scoring="neg_log_loss").fit(features, labels)


def judge(values: np.ndarray, labels: np.ndarray, groups: np.ndarray, amount: int, draw: int) -> list[float]:
    """Accuracy in % of ours and of the peer, learnt from `amount` pictures a class, then the seconds of both."""
    rng = np.random.default_rng(draw)
    learn = np.concatenate([rng.permutation(np.flatnonzero(labels == k))[:amount] for k in np.unique(labels)])
    rest = ~np.isin(groups, groups[learn])
    accuracies, seconds = [], []
    for fit in (fit_probe, fit_standardised):
        started = time.process_time()
        probe = fit(values[learn], labels[learn])
        seconds.append(time.process_time() - started)
        accuracies.append(100 * np.mean(probe.predict(values[rest]) == labels[rest]))
    return accuracies + seconds


def main() -> None:
    """Print a row for each network, set and number of pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folders", nargs="+", type=Path, required=True)
    parser.add_argument("--weights", default="imagenet")
    arguments = parser.parse_args()
    for net, alpha in BACKBONES.items():
        backbone = load_backbone(net, weights=arguments.weights, alpha=alpha, image_size=SIZE)
        for folder in arguments.folders:
            data = load_folder(folder, image_size=SIZE, split=Split(near_duplicates=False))
            features, groups = features_together(data, backbone), np.array(groups_together(data))
            for amount in AMOUNTS:
                found = np.array([judge(features.last, features.labels, groups, amount, draw) for draw in DRAWS])
                gain = mean_interval(found[:, 0] - found[:, 1])
                ours, peer = found.mean(axis=0)[:2]
                fast, slow = np.median(found, axis=0)[2:]
                print(f"{net} {alpha}".ljust(18) + f"{folder.name:22}{amount:4} a class  ours {ours:.1f}  standardised "
                      f"{peer:.1f}  ahead {gain.value:+.1f} ({gain.low:+.1f} to {gain.high:+.1f})  seconds {fast:.3f} "
                      f"against {slow:.3f}, share {fast / slow:.2f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
