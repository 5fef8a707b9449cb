from __future__ import annotations

import json

import numpy as np
import pytest

from tlkeras.evaluation import calibration_error, compare, confidence_bins, evaluate
from tlkeras.intervals import wilson_interval
from tlkeras.predictions import Predictions


def predictions(truth, predicted, num_classes=2, confidence=0.8, **options):
    """Get predictions in which every picture has the same confidence."""
    rest = (1 - confidence) / (num_classes - 1)
    probabilities = np.full((len(truth), num_classes), rest)
    probabilities[np.arange(len(truth)), predicted] = confidence
    names = tuple("abcdefghij"[:num_classes])
    return Predictions(np.array(truth), probabilities, options.pop("paths", None), names, **options)


def test_metrics_by_hand():
    # Class a: 3 of 4 right; class b: 1 of 2 right. Every confidence is 0.8.
    result = evaluate(predictions([0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0]))
    assert result.confusion.tolist() == [[3, 1], [1, 1]]
    assert result.accuracy.value == pytest.approx(4 / 6)
    assert result.balanced_accuracy.value == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert result.macro_f1.value == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert result.per_class["b"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "num_pictures": 2}
    assert result.calibration_error == pytest.approx(0.8 - 4 / 6)
    assert result.log_loss == pytest.approx(-(4 * np.log(0.8) + 2 * np.log(0.2)) / 6)
    assert result.num_pictures == 6


def test_scores_are_those_of_scikit_learn():
    from sklearn.metrics import balanced_accuracy_score, f1_score

    generator = np.random.default_rng(0)
    truth, predicted = generator.integers(0, 5, 200), generator.integers(0, 5, 200)
    predicted = np.where(generator.random(200) < 0.6, truth, predicted)
    result = evaluate(predictions(truth, predicted, 5))
    assert result.balanced_accuracy.value == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert result.macro_f1.value == pytest.approx(f1_score(truth, predicted, average="macro"))


def test_calibration_error_by_hand():
    # Confidence 0.9, 3 of 4 right: gap 0.15. Confidence 0.6, 1 of 2 right: gap 0.1. Weighted by 4 and 2.
    probabilities = np.array([[0.9, 0.1]] * 4 + [[0.6, 0.4]] * 2)
    truth = np.array([0, 0, 0, 1, 0, 1])
    assert calibration_error(probabilities, truth) == pytest.approx((4 * 0.15 + 2 * 0.1) / 6)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    counts, _, _ = confidence_bins(np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([0, 0]), num_bins=4)
    assert counts.tolist() == [0, 1, 0, 1]


def test_a_perfect_score_on_few_pictures_is_not_called_certain():
    few = evaluate(predictions([0] * 5 + [1] * 5, [0] * 5 + [1] * 5))
    many = evaluate(predictions([0] * 500 + [1] * 500, [0] * 500 + [1] * 500))
    for name in ("accuracy", "balanced_accuracy", "macro_f1"):
        assert getattr(few, name).low == pytest.approx(wilson_interval(10, 10).low)
        assert getattr(many, name).low > 0.99
        assert getattr(few, name).high == 1


def test_a_class_without_pictures_changes_no_interval_into_nan():
    result = evaluate(predictions([0, 0, 1, 1], [0, 1, 1, 1], 3))
    assert result.balanced_accuracy.value == pytest.approx(0.75)
    assert np.isfinite([result.balanced_accuracy.low, result.macro_f1.low, result.log_loss]).all()
    assert result.per_class["c"]["num_pictures"] == 0


def test_the_same_seed_gives_the_same_interval():
    some = predictions([0, 0, 0, 1, 1, 1], [0, 1, 0, 1, 1, 0])
    assert evaluate(some, seed=4).macro_f1 == evaluate(some, seed=4).macro_f1
    assert evaluate(some, seed=4).macro_f1.low != evaluate(some, seed=5).macro_f1.low


def test_an_evaluation_goes_through_json_unchanged():
    result = evaluate(predictions([0, 1, 1], [0, 1, 0])).to_dict()
    assert json.loads(json.dumps(result)) == result
    assert set(result["accuracy"]) == {"value", "low", "high"}
    assert result["confusion"] == [[1, 0], [1, 1]]


def test_other_tasks_are_sent_to_the_metrics_that_fit():
    other = Predictions(np.ones((2, 2)), np.ones((2, 2)), None, ("a", "b"), task="multi-label")
    with pytest.raises(ValueError, match="average_precision_score"):
        evaluate(other)
    with pytest.raises(ValueError, match="no truth"):
        evaluate(Predictions(None, np.ones((2, 2)) / 2, None, ("a", "b")))
    with pytest.raises(ValueError, match="from 0 to 1"):
        evaluate(Predictions(np.array([0, 2]), np.ones((2, 2)) / 2, None, ("a", "b")))


def test_mcnemar_by_hand():
    # Only a right on 6, only b on 1: two-sided 2 * (1 + 7) / 2**7.
    truth = np.zeros(20, int)
    a, b = truth.copy(), truth.copy()
    b[:6], a[6] = 1, 1
    result = compare(predictions(truth, a), predictions(truth, b))
    assert (result.only_a, result.only_b) == (6, 1)
    assert result.p_value == pytest.approx(2 * 8 / 2**7)
    assert result.difference.value == pytest.approx(5 / 20)


def test_a_model_compared_with_itself_shows_nothing():
    some = predictions([0, 1, 1, 0], [0, 1, 0, 0])
    result = compare(some, some)
    assert (result.only_a, result.only_b, result.p_value, result.difference.value) == (0, 0, 1.0, 0.0)
    assert result.difference.low < 0 < result.difference.high


def test_models_that_saw_other_pictures_are_not_compared():
    a = predictions([0, 1], [0, 1], paths=("x", "y"))
    with pytest.raises(ValueError, match="same pictures in the same order"):
        compare(a, predictions([0, 1], [0, 1], paths=("y", "x")))
    with pytest.raises(ValueError, match="same pictures in the same order"):
        compare(a, predictions([1, 0], [0, 1], paths=("x", "y")))
