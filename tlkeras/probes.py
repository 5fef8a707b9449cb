"""Probes: simple classifiers on the features of a frozen backbone, and how they become its head."""

from __future__ import annotations

import time
import warnings

import keras
import numpy as np

from tlkeras.evaluation import evaluate
from tlkeras.features import POOLING, compute_features
from tlkeras.freezing import transfer_of
from tlkeras.history import History
from tlkeras.predictions import Predictions, predict

PENALTIES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 1.0)  # scikit-learn's C, the inverse of the L2 penalty
NEIGHBOURS = (1, 3, 5, 9, 15)
KINDS = ("softmax", "svm", "knn", "centroid")


def fit_probe(features: np.ndarray, labels: np.ndarray, *, kind: str = "softmax", class_weight=None, seed: int = 0):
    """Get a simple classifier on features, its one setting chosen by cross-validation on these features.

    "softmax" is softmax regression, the usual linear probe; "svm" a linear support vector machine, as the notes on CNN
    codes have it; "knn" the nearest neighbours by cosine and "centroid" the nearest class mean, which learn
    nothing and so show how the classes lie. The penalty acts on standardised features, since networks differ
    in scale by orders of magnitude; the weights of the two linear ones are given back for the features as they are.

    Args:
        features: (pictures, channels), one row a picture: two views of a picture on both sides of a fold would leak.
        labels: Integers, (pictures,), at least two of each class.
        kind: "softmax", "svm", "knn" or "centroid".
        class_weight: Weight of each class, or None; of the linear ones only.
        seed: Of the folds.

    Returns:
        A fitted scikit-learn classifier: `LogisticRegression`, `LinearSVC` or a pipeline.

    Raises:
        ValueError: If the features are not a matrix, the labels not whole numbers, a class has one picture only, or the
            kind is unknown.
    """
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from threadpoolctl import threadpool_limits

    if features.ndim != 2:
        raise ValueError(f"A probe takes pooled features (pictures, channels), got an array of shape {features.shape}.")
    if labels.shape != features.shape[:1] or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ValueError(f"A probe takes one class (0, 1, ...) a row, got {labels.dtype} labels {labels.shape}.")
    counts = np.bincount(labels, minlength=2)
    if counts.min() < 2:
        raise ValueError(f"Class {counts.argmin()} has {counts.min()} pictures; cross-validation takes 2 or more.")
    classifier, grid, scoring = _candidates(kind, class_weight, len(labels))
    folds = StratifiedKFold(min(5, counts.min()), shuffle=True, random_state=seed)
    # Several BLAS threads on matrices this small wait for one another: fifty times slower on a busy machine.
    with threadpool_limits(1, user_api="blas"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "self.within_class_std_dev_")  # a channel that is always 0 is no news
        best = GridSearchCV(classifier, grid, cv=folds, scoring=scoring).fit(features, labels).best_estimator_
    if kind not in ("softmax", "svm"):
        return best
    scaler, probe = best
    probe.coef_ = probe.coef_ / scaler.scale_
    probe.intercept_ = probe.intercept_ - probe.coef_ @ scaler.mean_
    return probe


def _candidates(kind: str, class_weight, num_pictures: int) -> tuple[object, dict, str]:
    """A classifier, the values of its setting to try, and what chooses among them."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer, StandardScaler
    from sklearn.svm import LinearSVC

    if kind == "softmax":
        softmax = LogisticRegression(max_iter=500, tol=1e-3, class_weight=class_weight)
        return make_pipeline(StandardScaler(), softmax), {"logisticregression__C": PENALTIES}, "neg_log_loss"
    if kind == "svm":
        machine = LinearSVC(max_iter=5000, tol=1e-3, class_weight=class_weight, random_state=0)
        penalties = [penalty / 100 for penalty in PENALTIES]  # a hinge adds up over the pictures on the wrong side
        return make_pipeline(StandardScaler(), machine), {"linearsvc__C": penalties}, "accuracy"
    if kind == "knn":
        neighbours = [k for k in NEIGHBOURS if k <= num_pictures // 2]
        return (
            make_pipeline(Normalizer(), KNeighborsClassifier()),
            {"kneighborsclassifier__n_neighbors": neighbours},
            "accuracy",
        )
    if kind == "centroid":
        return make_pipeline(StandardScaler(), NearestCentroid()), {}, "accuracy"
    raise ValueError(f"kind must be one of {', '.join(map(repr, KINDS))}, got {kind!r}.")


def set_head(model: keras.Model, probe) -> None:
    """Put a probe's weights into the model's head, so that the whole model predicts what the probe predicts.

    Args:
        model: From `build_classifier` with a linear head on pooled features.
        probe: From `fit_probe` on the features of this model; a support vector machine keeps its decisions, while the
            probabilities that the model then gives mean little.

    Raises:
        ValueError: If the head is not linear or has another shape.
    """
    logits = _logits_layer(model)
    kernel, bias = probe.coef_.T, probe.intercept_
    if kernel.shape[1] == 1 and logits.units == 2:  # scikit-learn keeps the difference of the two logits
        kernel, bias = np.concatenate([-kernel / 2, kernel / 2], 1), np.concatenate([-bias / 2, bias / 2])
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

    Raises:
        ValueError: If the head is not linear, the task is no classification, or a class has one picture only.
    """
    started = time.perf_counter()
    _logits_layer(model)
    if model.transfer.task not in ("classification", "binary"):
        raise ValueError(f"A probe classifies; this model's task is {model.transfer.task!r}.")
    features, labels = compute_features(model, data.pictures("train"))
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


def _logits_layer(model: keras.Model) -> keras.layers.Dense:
    layers = [model.get_layer(name) for name in transfer_of(model).head_layers]
    weighted = [layer for layer in layers if layer.weights]
    linear = len(weighted) == 1 and isinstance(weighted[0], keras.layers.Dense) and weighted[0].use_bias
    if not linear or weighted[0].activation is not keras.activations.linear or not isinstance(layers[0], POOLING):
        raise ValueError("A probe fits a head of pooling and one dense layer only, such as build_head(num_classes).")
    return weighted[0]
