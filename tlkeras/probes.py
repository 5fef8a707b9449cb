"""Probes: simple classifiers on the features of a frozen backbone, and how they become its head."""

from __future__ import annotations

import time
import warnings

import keras
import numpy as np

from tlkeras.batches import check_batches
from tlkeras.evaluation import evaluate
from tlkeras.features import POOLING, compute_features
from tlkeras.freezing import transfer_of
from tlkeras.history import History
from tlkeras.pipelines import check_data
from tlkeras.predictions import Predictions, predict

PENALTIES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # scikit-learn's C, the inverse of the L2 penalty
NEIGHBOURS = (1, 3, 5, 9, 15)
KINDS = ("softmax", "svm", "knn", "centroid")


def fit_probe(features: np.ndarray, labels: np.ndarray, *, kind: str = "softmax", class_weight=None, seed: int = 0):
    """Get a simple classifier on features, its one setting chosen by cross-validation on these features.

    "softmax" is softmax regression, the usual linear probe; "svm" a linear support vector machine, as the notes on CNN
    codes have it; "knn" the nearest neighbours by cosine and "centroid" the nearest class mean, which learn
    nothing and so show how the classes lie. The penalty acts on scaled features, since networks differ in scale by
    orders of magnitude; the weights of the two linear ones are given back for the features as they are.

    Args:
        features: (pictures, channels), one row a picture: two views of a picture on both sides of a fold would leak.
        labels: Integers, (pictures,), at least two of each class.
        kind: "softmax", "svm", "knn" or "centroid".
        class_weight: Weight of each class, by label or "balanced", in the fit and in choosing its penalty; or None. Of
            the linear ones only.
        seed: Of the folds.

    Returns:
        A fitted scikit-learn classifier: `LogisticRegression`, `LinearSVC` or a pipeline.

    Raises:
        ValueError: If the features are not a matrix or not finite, the labels not whole numbers, a class has one
            picture only, or the kind is unknown.
    """
    from sklearn import config_context
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, Normalizer
    from threadpoolctl import threadpool_limits

    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, KINDS))}, got {kind!r}.")
    shape = getattr(features, "shape", None)
    if shape is None or len(shape) != 2:
        got = type(features).__name__ if shape is None else f"an array of shape {shape}"
        raise ValueError(f"A probe takes pooled features (pictures, channels), such as Features.last, got {got}.")
    labels = np.asarray(labels)
    check_classes(labels, len(features))
    if not np.isfinite(features).all():
        raise ValueError("The features hold NaN or infinite values: does the network overflow, or was divided by 0?")
    counts = np.bincount(labels, minlength=2)
    if counts.min() < 2:
        raise ValueError(f"Class {counts.argmin()} has {counts.min()} pictures; cross-validation takes 2 or more.")
    folds = StratifiedKFold(min(5, counts.min()), shuffle=True, random_state=seed)
    # Several BLAS threads on matrices this small wait for one another: fifty times slower on a busy machine.
    # scikit-learn's checks of each of the 41 fits take up to a fifth of the time where pictures are few.
    checked = config_context(assume_finite=True, skip_parameter_validation=True)
    with threadpool_limits(1, user_api="blas"), checked, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "self.within_class_std_dev_")  # a channel that is always 0 is no news
        if kind in ("softmax", "svm"):
            return _fit_linear(kind, features, labels, folds, class_weight)
        if kind == "centroid":
            return _fit_means(features, labels)
        grid = {"kneighborsclassifier__n_neighbors": [k for k in NEIGHBOURS if k <= len(labels) // 2]}
        neighbours = make_pipeline(FunctionTransformer(_widened), Normalizer(), KNeighborsClassifier())
        return GridSearchCV(neighbours, grid, cv=folds, scoring="accuracy").fit(features, labels).best_estimator_


def _widened(features: np.ndarray) -> np.ndarray:
    """Features whose squares have room."""
    return features.astype(np.float32) if features.dtype == np.float16 else features


def check_classes(labels: np.ndarray, num_pictures: int) -> None:
    """Refuse labels that are not one class (0, 1, ...) a picture with a ValueError."""
    if labels.shape != (num_pictures,) or labels.dtype.kind not in "iu" or not labels.size or labels.min() < 0:
        raise ValueError(
            f"A probe takes one class (0, 1, ...) a row, got {labels.dtype} labels {labels.shape}. For values, or "
            "several labels a picture: build_classifier(..., task=...) and train_head."
        )


def _fit_linear(kind: str, features: np.ndarray, labels: np.ndarray, folds, class_weight):
    """A linear classifier with the penalty that is best in cross-validation; its weights are for the features given."""
    from sklearn.base import clone
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC
    from sklearn.utils.class_weight import compute_sample_weight

    if kind == "softmax":
        probe, penalties = LogisticRegression(max_iter=500), PENALTIES
    else:  # a hinge adds up over the pictures on the wrong side
        probe, penalties = LinearSVC(max_iter=5000, random_state=0), np.divide(PENALTIES, 100)
    probe.set_params(class_weight=class_weight)
    totals, weights = np.zeros(len(penalties)), compute_sample_weight(class_weight, labels)
    for learn, judge in folds.split(features, labels):
        space = _RowSpace(features[learn])
        known, unknown = space.enter(features[learn]), space.enter(features[judge])
        fold = clone(probe).set_params(tol=1e-3)  # enough to choose by
        if kind == "softmax":
            fold.set_params(warm_start=True)  # from one penalty to the next
        for place, penalty in enumerate(penalties):
            fold.C = penalty
            fold.fit(known, labels[learn])
            totals[place] += weights[judge] @ _scores(fold, unknown, labels[judge])
    space = _RowSpace(features)
    probe.set_params(C=penalties[totals.argmax()]).fit(space.enter(features), labels)
    space.leave(probe)
    return probe


def _scores(probe, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The log-likelihood of each picture's class, or whether it was hit where there are no probabilities.

    scikit-learn's scorers give the same, but for probabilities below 2e-16, after checks that take as long as a fit.
    """
    from scipy.special import log_softmax

    if not hasattr(probe, "predict_proba"):
        return probe.predict(features) == labels
    logits = features @ probe.coef_.T + probe.intercept_
    if logits.shape[1] == 1:  # two classes: scikit-learn keeps the difference of the two logits
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    return log_softmax(logits, axis=1)[np.arange(len(labels)), labels]


def _scale_of(features: np.ndarray) -> np.ndarray:
    """What each channel is divided by: the geometric mean of its own standard deviation and that of all channels.

    Networks differ in scale, so some scaling there must be. Full standardising divides by deviations that few pictures
    hardly show, which costs up to 11 points at 3 pictures a class (`benchmarks/scaling.py`).
    """
    deviation = features.std(axis=0, dtype="float64")
    scale = np.sqrt(deviation * np.sqrt(np.mean(deviation**2)))
    return np.where(scale > 0, scale, 1.0)


class _RowSpace:
    """Scaled features as coordinates in the span of the training pictures.

    The weights of a linear classifier with an L2 penalty lie in that span, so a fit of 100 pictures has at most 100
    unknowns a class, not 1280, and the same solution.
    """

    def __init__(self, features: np.ndarray):
        self.mean, self.scale = features.mean(axis=0, dtype="float64"), _scale_of(features)
        self.basis = None
        rows = (features - self.mean) / self.scale
        if len(rows) < rows.shape[1]:
            values, vectors = np.linalg.eigh(rows @ rows.T)
            kept = values > values[-1] * 1e-10
            kept[-1] = True
            self.basis = rows.T @ (vectors[:, kept] / np.sqrt(np.maximum(values[kept], np.finfo(float).tiny)))

    def enter(self, features: np.ndarray) -> np.ndarray:
        """Coordinates of these pictures, float64."""
        rows = (features - self.mean) / self.scale
        return rows if self.basis is None else rows @ self.basis

    def leave(self, probe) -> None:
        """Turn the weights of a classifier that was fitted inside into weights for the features as they are."""
        inside = probe.coef_ if self.basis is None else probe.coef_ @ self.basis.T
        probe.coef_ = inside / self.scale
        probe.intercept_ = probe.intercept_ - probe.coef_ @ self.mean
        probe.n_features_in_ = len(self.mean)


def _fit_means(features: np.ndarray, labels: np.ndarray):
    """The nearest class mean, on channels scaled as for the linear classifiers."""
    from sklearn.neighbors import NearestCentroid
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(features)
    scaler.scale_ = _scale_of(features)
    return make_pipeline(scaler, NearestCentroid().fit(scaler.transform(features), labels))


def set_head(model: keras.Model, probe) -> None:
    """Put a probe's weights into the model's head, so that the whole model predicts what the probe predicts.

    Args:
        model: From `build_classifier` with a linear head on pooled features: pooling, one dense layer, and between or
            after them only what passes values on, such as dropout.
        probe: From `fit_probe` on the features of this model; a support vector machine keeps its decisions, while the
            probabilities that the model then gives mean little.

    Raises:
        ValueError: If the head is not linear or has another shape, or the probe has no weights, such as "knn" and
            "centroid".
    """
    logits = _logits_layer(model)
    if not hasattr(probe, "coef_"):
        raise ValueError(
            f"Only a linear probe becomes a head, and a {type(probe).__name__} has no weights: take "
            "fit_probe(features, labels) of kind 'softmax' or 'svm'."
        )
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
        ValueError: If `data` is no `Data`, the head is not linear, the task is no classification, or a class has one
            picture only.
    """
    started = time.perf_counter()
    check_data(data)
    _logits_layer(model)
    if model.transfer.task not in ("classification", "binary"):
        raise ValueError(f"A probe classifies; this model's task is {model.transfer.task!r}.")
    if few := {name: count for name, count in data.counts["train"].items() if count < 2}:
        name, count = few.popitem()
        raise ValueError(f"Class {name!r} has {count} training pictures; a probe takes 2 or more. See train_head.")
    check_batches(model, data.pictures("train"))
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
    dense = [layer for layer in layers if type(layer) is keras.layers.Dense]
    linear = len(dense) == 1 and dense[0].use_bias and dense[0].activation is keras.activations.linear
    others = [layer for layer in layers if layer not in dense and not _passes(layer)]
    if others or not linear or not isinstance(layers[0], POOLING):
        first = [layer for layer in layers[:1] if not isinstance(layer, POOLING)]
        wrong = (first + others + dense + layers)[0]
        raise ValueError(
            "A probe fits a head of pooling and one dense layer only, with a bias and no activation, such as "
            f"build_head(num_classes); {wrong.name!r} ({type(wrong).__name__}) does not fit in. Train this head with "
            "train_head."
        )
    return dense[0]


def _passes(layer: keras.layers.Layer) -> bool:
    """Whether a layer of the head hands on what it gets: pooled values do not change in it when the model predicts."""
    if type(layer) is keras.layers.Activation:
        return layer.activation is keras.activations.linear
    noise = keras.layers.Dropout, keras.layers.AlphaDropout, keras.layers.GaussianDropout, keras.layers.GaussianNoise
    return isinstance(layer, POOLING) or type(layer) in (keras.layers.Identity, *noise)
