"""A rare class: which epoch does early stopping keep when class weights count in training only?

    python -m benchmarks imbalance --folders DIR DIR DIR [--weights imagenet]

Each class of each set in turn is made rare: one picture to eleven of each other class, to learn from and to choose the
epoch by alike. The judge is balanced accuracy on all pictures that are left. Ours is `train_head` with `class_weight`;
the peer is Keras's `fit(class_weight=...)` of the same layer on the same features, with the same optimizer, schedule
and patience, and `EarlyStopping(restore_best_weights=True)`, which looks at an unweighted validation loss. The last
column is ours without weights. MobileNetV2 alpha 0.35 at 224 px; three draws.

The second row of a set is the linear probe on all pictures to learn from: ours is `fit_probe` with `class_weight`, the
peer scikit-learn's `GridSearchCV` of a weighted `LogisticRegression` over the same penalties on the same scaled
features, whose log loss weighs all pictures alike.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from _sets import features_together, groups_together, pixels_together
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from threadpoolctl import threadpool_limits

import tlkeras as tl
from tlkeras.optimizers import DiscriminativeAdam, warmup_cosine
from tlkeras.probes import PENALTIES, _scale_of

SIZE, DRAWS, COMMON, RARE = 224, range(3), 88, 8  # pictures a class, half to learn from and half to choose by


def deal(labels, groups, rare: int, draw: int):
    """Numbers of the pictures to learn from, to choose by and to judge by; no group on two sides."""
    rng, sides = np.random.default_rng(draw), ([], [])
    order = rng.permutation(np.unique(groups))
    half = dict(zip(order, np.arange(len(order)) % 2, strict=True))
    side = np.array([half[group] for group in groups])
    for k in np.unique(labels):
        for s in (0, 1):
            own = rng.permutation(np.flatnonzero((labels == k) & (side == s)))
            sides[s].append(own[: (RARE if k == rare else COMMON) // 2])
    learn, choose = (np.concatenate(numbers) for numbers in sides)
    rest = ~np.isin(groups, groups[np.concatenate([learn, choose])])
    return learn, choose, np.flatnonzero(rest)


def keras_head(values, labels, learn, choose, weight: dict[int, float]):
    """The peer's predictions for all pictures."""
    model = keras.Sequential([keras.Input(values.shape[1:]), keras.layers.Dense(int(labels.max()) + 1)])
    rate = warmup_cosine(1e-3, 40 * -(-len(learn) // 32), 0.1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(DiscriminativeAdam(rate), loss)
    stop = keras.callbacks.EarlyStopping("val_loss", patience=5, restore_best_weights=True)
    model.fit(values[learn], labels[learn], epochs=40, class_weight=weight, verbose=0, callbacks=[stop],
              validation_data=(values[choose], labels[choose]))  # fmt: skip
    return model.predict(values, verbose=0, batch_size=512).argmax(axis=1)


def our_head(backbone, images, labels, learn, choose, weight: dict[int, float] | None) -> keras.Model:
    """The model that `train_head` makes, with the same single layer."""
    model = tl.build_classifier(backbone, int(labels.max()) + 1, head=tl.build_head(int(labels.max()) + 1, dropout=0))
    sides = [tl.make_batches(images[rows], labels[rows], seed=seed) for rows, seed in ((learn, 0), (choose, None))]
    tl.train_head(model, *sides, settings=tl.Settings(class_weight=weight, verbose=0))
    return model


def probes(values, labels, learn, seed: int) -> list[np.ndarray]:
    """What the peer's probe, ours and ours without weights predict for all pictures."""
    scale = _scale_of(values[learn])
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    plain = LogisticRegression(max_iter=2000, class_weight="balanced")
    peer = GridSearchCV(plain, {"C": PENALTIES}, scoring="neg_log_loss", cv=folds)
    with threadpool_limits(1, user_api="blas"):  # several threads on matrices this small wait for one another
        guesses = [peer.fit(values[learn] / scale, labels[learn]).predict(values / scale)]
    for weight in ("balanced", None):
        probe = tl.fit_probe(values[learn], labels[learn], class_weight=weight, seed=seed)
        guesses.append(probe.predict(values))
    return guesses


def report(name: str, rows: list[list[float]]) -> None:
    """Print the means of peer, ours and no weights, and the paired interval."""
    peer, ours, none = np.array(rows).T
    gain = tl.mean_interval(ours - peer)
    print(f"{name:24}{ours.mean():18.1f}{peer.mean():8.1f}{none.mean():8.1f}  {gain.value:+.1f} points "
          f"({gain.low:+.1f} to {gain.high:+.1f}), {len(rows)} runs", flush=True)  # fmt: skip


def main() -> None:
    """Print two rows for each set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folders", nargs="+", type=Path, required=True)
    parser.add_argument("--weights", default="imagenet")
    arguments = parser.parse_args()
    backbone = tl.load_backbone("MobileNetV2", weights=arguments.weights, alpha=0.35, image_size=SIZE)
    print(f"{'balanced accuracy (%)':24}{'weights in both':>18}{'peer':>8}{'none':>8}  ahead of the peer by")
    for folder in arguments.folders:
        data = tl.load_folder(folder, image_size=SIZE, split=tl.Split(near_duplicates=False))
        features, groups = features_together(data, backbone), np.array(groups_together(data))
        images, labels = pixels_together(data)
        heads, linear = [], []
        for rare in range(data.num_classes):
            for draw in DRAWS:
                learn, choose, judged = deal(labels, groups, rare, draw)
                counts = np.bincount(labels[learn])
                weight = {k: len(learn) / len(counts) / count for k, count in enumerate(counts)}
                keras.utils.set_random_seed(draw)
                guesses = [keras_head(features.last, labels, learn, choose, weight)]
                for given in (weight, None):
                    keras.utils.set_random_seed(draw)
                    model = our_head(backbone, images, labels, learn, choose, given)
                    kernel, bias = (keras.ops.convert_to_numpy(v) for v in model.get_layer("logits").weights)
                    guesses.append((features.last @ kernel + bias).argmax(axis=1))
                both = np.concatenate([learn, choose])
                for rows, found in ((heads, guesses), (linear, probes(features.last, labels, both, draw))):
                    rows.append([100 * balanced_accuracy_score(labels[judged], guess[judged]) for guess in found])
        report(folder.name, heads)
        report("  linear probe", linear)


if __name__ == "__main__":
    main()
