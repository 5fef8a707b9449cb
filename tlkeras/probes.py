"""Linear probes: a classifier in closed form on the features of a frozen backbone."""

from __future__ import annotations

import time

import keras
import numpy as np

from tlkeras.evaluation import Predictions, evaluate, predict
from tlkeras.features import compute_features
from tlkeras.training import History

PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # scikit-learn's C, the inverse of the L2 penalty


def fit_probe(features: np.ndarray, labels: np.ndarray, *, class_weight=None, seed: int = 0):
    """Get a softmax regression whose L2 penalty was chosen by cross-validated log loss on these features.

    Args:
        features: (pictures, channels), one row a picture: two views of a picture on both sides of a fold would leak.
        labels: Integers, (pictures,), at least two of each class.
        class_weight: Weight of each class, or None.
        seed: Of the folds.

    Returns:
        A fitted `sklearn.linear_model.LogisticRegression`.

    Raises:
        ValueError: If the features are not a matrix or a class has one picture only.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from threadpoolctl import threadpool_limits

    if features.ndim != 2:
        raise ValueError(f"A probe takes pooled features (pictures, channels), got an array of shape {features.shape}.")
    rarest = int(np.bincount(labels).min())
    if rarest < 2:
        raise ValueError("A class has fewer than 2 training pictures, so its penalty cannot be cross-validated.")
    search = GridSearchCV(
        LogisticRegression(max_iter=500, tol=1e-3, class_weight=class_weight),
        {"C": PENALTIES},
        cv=StratifiedKFold(min(5, rarest), shuffle=True, random_state=seed),
        scoring="neg_log_loss",
    )
    # Several BLAS threads on matrices this small wait for one another: fifty times slower on a busy machine.
    with threadpool_limits(1, user_api="blas"):
        return search.fit(features, labels).best_estimator_


def set_head(model: keras.Model, probe) -> None:
    """Put a probe's weights into the model's head, so that the whole model predicts what the probe predicts.

    Args:
        model: From `build_classifier` with a linear head on pooled features.
        probe: From `fit_probe` on the features of this model.

    Raises:
        ValueError: If the head is not linear or has another shape.
    """
    weighted = [name for name in model.transfer.head_layers if model.get_layer(name).weights]
    if weighted != ["logits"] or model.transfer.head_layers[0] != "pool":
        raise ValueError("A probe fits a head of pooling and one dense layer only, such as build_head(num_classes).")
    kernel, bias = probe.coef_.T, probe.intercept_
    if kernel.shape[1] == 1:  # two classes: scikit-learn keeps the difference of the two logits
        kernel, bias = np.concatenate([-kernel / 2, kernel / 2], 1), np.concatenate([-bias / 2, bias / 2])
    logits = model.get_layer("logits")
    if kernel.shape != tuple(logits.kernel.shape):
        raise ValueError(f"The probe's weights are {kernel.shape}, the head's are {tuple(logits.kernel.shape)}.")
    logits.set_weights([kernel, bias])


def probe_head(model: keras.Model, data, *, class_weight=None, seed: int = 0) -> History:
    """Train the head as a linear probe: features once, softmax regression, the weights put into the model.

    The fastest honest classifier there is, and hard to beat with a few hundred pictures.

    Args:
        model: From `build_classifier`, its backbone frozen, its head linear.
        data: The `Data` of a loader.
        class_weight: Weight of each class, or None.
        seed: Of the folds that choose the penalty.

    Returns:
        A history of one row.
    """
    started = time.perf_counter()
    features, labels = compute_features(model, data.ordered("train"))
    probe = fit_probe(features, labels, class_weight=class_weight, seed=seed)
    set_head(model, probe)
    held_out: Predictions = predict(model, data)
    judged = evaluate(held_out)
    seconds = time.perf_counter() - started
    row = {
        "phase": "probe", "epoch": 1, "accuracy": float(probe.score(features, labels)),
        "val_accuracy": judged.accuracy.value, "val_loss": judged.log_loss, "penalty": 1 / probe.C, "seconds": seconds,
    }  # fmt: skip
    return History([row], {}, {"probe": 1}, {"probe": seconds})
