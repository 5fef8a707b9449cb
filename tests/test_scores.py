import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.covariance import ledoit_wolf

from tlkeras.scores import h_score, log_me


@pytest.fixture
def classes():
    """60 pictures of three classes, 8 channels, the class means apart."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    return rng.normal(size=(60, 8)) + 1.5 * rng.normal(size=(3, 8))[labels], labels


def slow_h_score(features, labels):
    """The formula of Ibrahim and others, with its matrices written out."""
    centred = features - features.mean(axis=0)
    covariance, shrinkage = ledoit_wolf(centred, assume_centered=True)
    replaced = np.stack([centred[labels == label].mean(axis=0) for label in labels])
    return np.trace(np.linalg.inv(covariance) @ ((1 - shrinkage) * replaced.T @ replaced / len(labels)))


def slow_log_me(features, labels):
    """Labels are normal with covariance I / beta + F F' / alpha; the best of both precisions by a general optimiser."""
    scores = []
    for k in np.unique(labels):
        target = (labels == k).astype(float)

        def cost(precisions, target=target):
            alpha, beta = np.exp(precisions)
            covariance = np.eye(len(target)) / beta + features @ features.T / alpha
            return -multivariate_normal(np.zeros(len(target)), covariance).logpdf(target) / len(target)

        scores.append(-minimize(cost, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10}).fun)
    return np.mean(scores)


def test_h_score_equals_its_formula_written_out(classes):
    assert h_score(*classes) == pytest.approx(slow_h_score(*classes), rel=1e-9)


def test_log_me_equals_the_evidence_maximised_by_a_general_optimiser(classes):
    assert log_me(*classes) == pytest.approx(slow_log_me(*classes), abs=1e-6)


def test_log_me_holds_with_more_channels_than_pictures():
    rng = np.random.default_rng(1)
    features, labels = rng.normal(size=(20, 35)), np.arange(20) % 2
    assert log_me(features, labels) == pytest.approx(slow_log_me(features, labels), abs=1e-4)


@pytest.mark.parametrize("score", [h_score, log_me])
def test_features_that_tell_the_classes_apart_score_higher(score, classes):
    features, labels = classes
    shuffled = np.random.default_rng(1).permutation(labels)
    assert score(features, labels) > score(features, shuffled)


def test_features_without_a_signal_score_what_is_left_of_them():
    """Evidence of the noise alone; and no variance, so none that the classes explain."""
    labels = np.arange(20) % 2
    assert log_me(np.zeros((20, 5)), labels) == pytest.approx(slow_log_me(np.zeros((20, 5)), labels), abs=1e-6)
    assert log_me(np.full((20, 5), 1e-9), labels) > log_me(np.zeros((20, 5)), labels)  # half of the labels are 1
    for value in (0, 1, 0.1, 1e-12):
        assert h_score(np.full((20, 5), value), labels) == 0


def test_features_that_are_one_point_a_class_score_one():
    """Their covariance has no inverse and is not shrunk: all variance is between the classes, in one direction."""
    labels = np.arange(20) % 2
    for scale, shift in ((1, 0), (0.1, 0.3)):
        assert h_score(scale * np.eye(2)[labels] + shift, labels) == pytest.approx(1)


@pytest.mark.parametrize("score", [h_score, log_me])
def test_two_classes_may_be_true_and_false(score, classes):
    features, labels = classes
    assert score(features, labels == 0) == score(features, (labels == 0).astype(int))


@pytest.mark.parametrize("score", [h_score, log_me])
def test_what_cannot_be_scored_is_refused(score):
    with pytest.raises(ValueError, match="one only"):
        score(np.zeros((4, 2)), np.zeros(4, int))
    with pytest.raises(ValueError, match=r"got \(4, 2, 2\) and \(4,\)"):
        score(np.zeros((4, 2, 2)), np.zeros(4, int))
    with pytest.raises(ValueError, match=r"classes, whole numbers; got float64 labels: \[0"):
        score(np.ones((4, 2)), np.linspace(0, 1, 4))
    with pytest.raises(ValueError, match="got <U1 labels.*return_inverse=True"):
        score(np.ones((4, 2)), np.array(list("abab")))
    with pytest.raises(ValueError, match="NaN or infinite"):
        score(np.full((4, 2), np.nan), np.arange(4) % 2)
