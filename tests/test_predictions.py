from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from PIL import Image

from tlkeras import predictions
from tlkeras.loaders import load_arrays, load_folder
from tlkeras.predictions import Predictions, open_test, predict, to_probabilities
from tlkeras.splits import Split

PACKAGE = Path(predictions.__file__).parent


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
    np.testing.assert_array_equal(result.predicted, result.truth)


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
        result = to_probabilities(np.array(logits), task)
        assert np.isfinite(result).all() and result.sum() == 1
    assert to_probabilities(np.array([[0.0, 0.0]]), "multi-label").tolist() == [[0.5, 0.5]]


def test_a_diverged_model_is_named_as_such():
    with pytest.raises(ValueError, match="1 of 2 pictures.*diverged"):
        to_probabilities(np.array([[1.0, 2.0], [np.nan, 1.0]]))


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
    assert readers == {("predictions.py", "open_test")}


@pytest.mark.parametrize("split", ["validation", "test"])
def test_pictures_that_are_not_raw_are_refused(split):
    data = SimpleNamespace(**vars(grey_pictures()))
    data.test, whole = True, grey_pictures()
    data.ordered = lambda split: whole.ordered(split).map(lambda images, labels: (images / 255, labels))
    with pytest.raises(ValueError, match=r"raw, in \[0, 255\].*any division by 255"):
        open_test(brightness_model(), data) if split == "test" else predict(brightness_model(), data)


def test_pictures_of_another_size_and_a_second_softmax_are_refused():
    small = load_arrays(np.arange(16, dtype="uint8")[:, None, None, None] * np.ones((1, 6, 6, 3), "uint8"), [0, 1] * 8)
    with pytest.raises(ValueError, match=r"takes pictures of shape \(None, 8, 8, 3\), got \(\d+, 6, 6, 3\)"):
        predict(brightness_model(), small)
    with pytest.raises(ValueError, match="leave its last softmax out"):
        predict(keras.Sequential([brightness_model(), keras.layers.Softmax()]), grey_pictures())


def test_an_order_that_changed_under_way_is_refused():
    data = SimpleNamespace(**vars(grey_pictures()))
    data.labels, data.ordered = dict(data.labels), grey_pictures().ordered
    data.labels["validation"] = data.labels["validation"][::-1]
    with pytest.raises(ValueError, match="no longer yields"):
        predict(brightness_model(), data)


def test_parts_of_different_length_do_not_make_predictions():
    with pytest.raises(ValueError, match="2 paths for 3 rows"):
        Predictions(None, np.ones((3, 2)) / 2, ("a", "b"), ("a", "b"))
    with pytest.raises(ValueError, match="3 class names for 2 columns"):
        Predictions(None, np.ones((1, 2)), None, ("a", "b", "c"))


def test_rows_name_the_label_and_every_probability():
    some = Predictions(None, np.array([[0.25, 0.75]]), ("x.png",), ("ants", "bees"))
    assert some.to_rows() == [{"path": "x.png", "label": "bees", "probabilities": {"ants": 0.25, "bees": 0.75}}]
    labels = Predictions(None, np.array([[0.7, 0.75]]), None, ("ants", "bees"), task="multi-label")
    assert labels.to_rows()[0]["labels"] == ["ants", "bees"]
