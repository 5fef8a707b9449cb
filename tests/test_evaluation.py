from __future__ import annotations

import ast
import json
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from PIL import Image

from tlkeras import evaluation
from tlkeras.data import load_arrays, load_folder
from tlkeras.evaluation import (
    Predictions,
    compare,
    evaluate,
    mean_interval,
    open_test,
    predict,
    wilson_interval,
    worst,
)
from tlkeras.splits import Split

PACKAGE = Path(evaluation.__file__).parent


def predictions(truth, predicted, num_classes=2, confidence=0.8, **options):
    """Get predictions in which every picture has the same confidence."""
    rest = (1 - confidence) / (num_classes - 1)
    probabilities = np.full((len(truth), num_classes), rest)
    probabilities[np.arange(len(truth)), predicted] = confidence
    names = tuple("abcdefghij"[:num_classes])
    return Predictions(np.array(truth), probabilities, options.pop("paths", None), names, **options)


def grey_pictures(test=0.2):
    """Get data of 60 pictures, each of one grey, dark (below 128) or bright."""
    grey = np.random.default_rng(0).permutation(256)[:60]
    images = np.ones((60, 8, 8, 3), "float32") * grey[:, None, None, None]
    return load_arrays(images, grey // 128, class_names=("dark", "bright"), batch_size=4, split=Split(0.3, test))


def brightness_model(task=None):
    """Get a model whose logits are known: 0 and (mean - 127.5) / 10, or the second alone for "binary"."""
    pictures = keras.Input((8, 8, 3))
    mean = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(0.1, -12.75)(pictures))
    weights = np.array([[1.0], [0], [0]]) if task == "binary" else np.array([[0, 1.0], [0, 0], [0, 0]])
    dense = keras.layers.Dense(weights.shape[1], use_bias=False)
    model = keras.Model(pictures, dense(mean))
    dense.set_weights([weights])
    if task:
        model.transfer = SimpleNamespace(task=task)
    return model


def test_predictions_follow_the_truth_picture_by_picture():
    data = grey_pictures()
    result = predict(brightness_model(), data)
    images = np.concatenate([np.asarray(images) for images, _ in data.ordered("validation")])
    logit = (images[:, 0, 0, 0] - 127.5) / 10
    np.testing.assert_allclose(result.probabilities[:, 1], 1 / (1 + np.exp(-logit)), atol=1e-5)
    np.testing.assert_array_equal(result.truth, images[:, 0, 0, 0] >= 128)
    assert len(result) > 3 * data.batch_size and result.class_names == ("dark", "bright")
    assert evaluate(result).accuracy.value == 1.0


def test_predictions_of_files_carry_their_paths_in_the_same_order(tmp_path):
    for grey in range(0, 256, 8):
        path = tmp_path / ("dark" if grey < 128 else "light") / f"{grey}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = np.full((8, 8, 3), grey, np.uint8)
        Image.fromarray(pixels).save(path)
    data = load_folder(tmp_path, image_size=8, split=Split(0.4, near_duplicates=False))
    result = predict(brightness_model(), data)
    assert result.paths == tuple(data.paths["validation"])
    greys = np.array([int(Path(path).stem) for path in result.paths])
    np.testing.assert_array_equal(np.argsort(greys), np.argsort(result.probabilities[:, 1], kind="stable"))
    np.testing.assert_array_equal(result.truth, greys >= 128)


def test_one_logit_and_two_say_the_same():
    data = grey_pictures()
    one, two = predict(brightness_model("binary"), data), predict(brightness_model("classification"), data)
    assert one.probabilities.shape == (len(two), 2)
    np.testing.assert_allclose(one.probabilities, two.probabilities, atol=1e-6)


def test_probabilities_of_huge_logits_are_finite_and_sum_to_one():
    for task, logits in (("classification", [[1e4, -1e4, 0]]), ("binary", [[-1e4]])):
        result = evaluation.to_probabilities(np.array(logits), task)
        assert np.isfinite(result).all() and result.sum() == 1
    assert evaluation.to_probabilities(np.array([[0.0, 0.0]]), "multi-label").tolist() == [[0.5, 0.5]]


def test_a_diverged_model_is_named_as_such():
    with pytest.raises(ValueError, match="1 of 2 pictures.*diverged"):
        evaluation.to_probabilities(np.array([[1.0, 2.0], [np.nan, 1.0]]))


def test_predict_keeps_the_test_split_closed_and_says_what_opens_it():
    data = grey_pictures()
    with pytest.raises(ValueError, match="open_test"):
        predict(brightness_model(), data, "test")
    with pytest.raises(ValueError, match="'validation' or 'train'"):
        predict(brightness_model(), data, "valid")
    opened = open_test(brightness_model(), data)
    np.testing.assert_array_equal(opened.truth, data.labels["test"])
    with pytest.raises(ValueError, match="no test split"):
        open_test(brightness_model(), grey_pictures(test=0))


def test_no_other_function_of_the_package_reads_the_test_split():
    readers = set()
    for file in set(PACKAGE.glob("*.py")) - {PACKAGE / "data.py"}:  # which makes the splits
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
            nodes = list(ast.walk(function))
            # `data.test is None` asks whether there is one; it reads no picture.
            asked = {
                id(n.left) for n in nodes if isinstance(n, ast.Compare) and isinstance(n.ops[0], ast.Is | ast.IsNot)
            }
            for node in nodes:
                ordered = isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "ordered"
                opens = ordered and any(getattr(a, "value", None) == "test" for a in node.args)
                takes = isinstance(node, ast.Attribute) and node.attr == "test" and isinstance(node.ctx, ast.Load)
                if opens or (takes and id(node) not in asked and ast.unparse(node.value).endswith("data")):
                    readers.add((file.name, function.name))
    assert readers == {("evaluation.py", "open_test")}


def test_an_order_that_changed_under_way_is_refused():
    data = SimpleNamespace(**vars(grey_pictures()))
    data.labels, data.ordered = dict(data.labels), grey_pictures().ordered
    data.labels["validation"] = data.labels["validation"][::-1]
    with pytest.raises(ValueError, match="no longer yields"):
        predict(brightness_model(), data)


def test_parts_of_different_length_do_not_make_predictions():
    with pytest.raises(ValueError, match="2 paths for 3 rows"):
        predictions([0, 1, 1], [0, 1, 0], paths=("a", "b"))
    with pytest.raises(ValueError, match="3 class names for 2 columns"):
        Predictions(None, np.ones((1, 2)), None, ("a", "b", "c"))


def test_wilson_interval_by_hand():
    eight = wilson_interval(8, 10)
    assert (round(eight.low, 4), round(eight.high, 4)) == (0.4902, 0.9433)
    assert str(eight) == "0.800 (0.490 to 0.943)"
    # At 0 of n the upper bound is z² / (n + z²).
    none, every = wilson_interval(0, 10), wilson_interval(10, 10)
    assert none.low == 0 and none.high == pytest.approx(3.8415 / 13.8415, abs=1e-4)
    assert every.high == 1 and every.low == pytest.approx(1 - none.high)
    with pytest.raises(ValueError, match="one picture at least"):
        wilson_interval(0, 0)


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
    assert evaluation.calibration_error(probabilities, truth) == pytest.approx((4 * 0.15 + 2 * 0.1) / 6)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    counts, _, _ = evaluation.confidence_bins(np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([0, 0]), num_bins=4)
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


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    # 2 x 20 pictures at 95 %: here the percentile bootstrap covers only about 88 to 91 %.
    generator, covered = np.random.default_rng(3), 0
    truth = np.repeat([0, 1], 20)
    for _ in range(300):
        wrong = generator.random(40) > 0.95
        score = evaluate(predictions(truth, np.where(wrong, 1 - truth, truth))).balanced_accuracy
        assert score.low <= score.value <= score.high
        covered += score.low <= 0.95 <= score.high
    assert covered / 300 > 0.92


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


def test_rows_name_the_label_and_every_probability():
    some = Predictions(None, np.array([[0.25, 0.75]]), ("x.png",), ("ants", "bees"))
    assert some.to_rows() == [{"path": "x.png", "label": "bees", "probabilities": {"ants": 0.25, "bees": 0.75}}]
    labels = Predictions(None, np.array([[0.7, 0.75]]), None, ("ants", "bees"), task="multi-label")
    assert labels.to_rows()[0]["labels"] == ["ants", "bees"]


def test_mcnemar_by_hand():
    # Only a right on 6, only b on 1: two-sided 2 * (1 + 7) / 2**7.
    truth = np.zeros(20, int)
    a, b = truth.copy(), truth.copy()
    b[:6], a[6] = 1, 1
    result = compare(predictions(truth, a), predictions(truth, b))
    assert (result.only_a, result.only_b) == (6, 1)
    assert result.p_value == pytest.approx(2 * 8 / 2**7)
    assert result.difference.value == pytest.approx(5 / 20)
    # Agresti-Min: centre 5 / 22, half 1.96 * sqrt(8 - 25 / 22) / 22.
    assert result.difference.low == pytest.approx(5 / 22 - 1.96 * np.sqrt(8 - 25 / 22) / 22, abs=1e-4)


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


def test_mean_interval_by_hand():
    # Standard deviation 0.02, t(2) = 4.3027.
    interval = mean_interval([0.90, 0.92, 0.94])
    assert interval.value == pytest.approx(0.92)
    assert interval.high - interval.value == pytest.approx(4.3027 * 0.02 / np.sqrt(3), abs=1e-5)
    with pytest.raises(ValueError, match="two finite values"):
        mean_interval([0.9])


def test_worst_gives_the_surest_mistakes_first():
    probabilities = np.array([[0.6, 0.4], [0.9, 0.1], [0.99, 0.01], [0.3, 0.7]])
    some = Predictions(np.array([1, 1, 0, 1]), probabilities, None, ("a", "b"))
    assert worst(some).tolist() == [1, 0]
    assert worst(some, 1).tolist() == [1]
