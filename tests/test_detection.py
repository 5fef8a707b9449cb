import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import make_tiny_backbone

import tlkeras as tl
from tlkeras.export import FORMATS
from tlkeras.fractals import background
from tlkeras.optimizers import DetectionLoss
from tlkeras.predictions import to_answers, to_probabilities


def of(boxes, labels, scores):
    return tl.Detections(np.array(boxes, np.float32).reshape(-1, 4), np.array(labels), np.array(scores, np.float32))


@pytest.fixture(scope="module")
def scenes():
    return tl.make_scenes(60, 2, image_size=32, most=2)


@pytest.fixture
def detector():
    return tl.build_detector(make_tiny_backbone(32), 2, stage=1)  # maps of 8 x 8


def as_logits(maps):
    """Outputs that say what the maps say: the inverses of sigmoid and softplus."""
    heat, sides = np.clip(maps[..., :-4], 1e-4, 1 - 1e-4), np.maximum(maps[..., -4:], 1e-4)
    return np.concatenate([np.log(heat / (1 - heat)), np.log(np.expm1(sides))], axis=-1)


def answering(model, outputs):
    """A detector with that shape that gives these outputs, whatever it sees."""
    inputs = keras.Input(model.input_shape[1:])
    constant = keras.ops.convert_to_tensor(outputs, "float32")
    fixed = keras.Model(inputs, keras.layers.Lambda(lambda x: constant + 0 * keras.ops.sum(x))(inputs))
    fixed.transfer = model.transfer
    return fixed


def test_scenes_are_the_same_each_time_and_the_boxes_hold_what_differs_from_the_background():
    images, boxes, labels = tl.make_scenes(5, 3, image_size=64)
    again = tl.make_scenes(2, 3, image_size=64, first_picture=3)
    np.testing.assert_array_equal(images[3:], again[0])
    np.testing.assert_array_equal(boxes[4], again[1][1])
    for k, (some, names) in enumerate(zip(boxes, labels, strict=True)):
        change = np.abs(images[k] - background(64, np.random.default_rng([1, k, 2]))).sum(axis=-1)
        inside = sum(change[int(y1) : int(y2), int(x1) : int(x2)].sum() for x1, y1, x2, y2 in some)
        assert inside > 0.9 * change[change > 3].sum() > 0
        assert 1 <= len(some) <= 3 and some.shape == (len(names), 4) and names.max() < 3
        assert np.all(some[:, :2] < some[:, 2:]) and some.min() >= 0 and some.max() <= 64
        for j, one in enumerate(some):
            for other in some[:j]:
                assert one[0] >= other[2] or one[2] <= other[0] or one[1] >= other[3] or one[3] <= other[1]


def test_fractals_are_drawn_as_before_scenes_were():
    images, _ = tl.make_fractals(2, 2, image_size=24)
    assert images.sum(axis=(1, 2, 3)).tolist() == [159300, 170533, 230612, 240381]


def test_a_detector_that_gives_the_encoded_maps_finds_every_box_again(detector, scenes):
    images, boxes, labels = scenes
    maps = tl.encode_objects(detector, boxes, labels)
    assert maps.shape == (60, 8, 8, 6)
    assert (maps[..., :2] == 1).sum() == sum(map(len, labels))
    fixed = answering(detector, as_logits(maps)[:32])
    for found, some, names in zip(tl.detect(fixed, images[:32]), boxes, labels, strict=False):
        order, truth = np.lexsort(found.boxes.T), np.lexsort(some.T)
        np.testing.assert_allclose(found.boxes[order], some[truth], atol=0.02)
        np.testing.assert_array_equal(found.labels[order], names[truth])
        assert found.scores.min() > 0.99
    exact = [of(some, names, np.ones(len(names))) for some, names in zip(boxes, labels, strict=True)]
    assert tl.average_precision(exact, boxes, labels) == 1.0


def test_of_two_objects_at_one_place_the_smaller_is_kept(detector):
    large, small = [2, 2, 30, 30], [12, 12, 20, 20]
    for boxes in ([large, small], [small, large]):
        maps = tl.encode_objects(detector, [boxes], [[0, 0]])
        row, column = np.argwhere(maps[0, ..., 0] == 1)[0]
        np.testing.assert_allclose(maps[0, row, column, 2] + maps[0, row, column, 4], 8 / 32)


def test_the_loss_is_that_of_the_formula():
    rng = np.random.default_rng(0)
    truth, guess = np.zeros((2, 3, 3, 6)), rng.normal(size=(2, 3, 3, 6))
    truth[0, 1, 2, 0], truth[0, 1, 1, 0], truth[0, 1, 2, -4:] = 1, 0.5, [0.1, 0.2, 0.3, 0.1]
    truth[0, 0, 0, 1], truth[0, 0, 0, -4:] = 1, [0.2, 0.2, 0.2, 0.2]
    slow = np.zeros(2)
    for k, row, column in np.ndindex(2, 3, 3):
        for name in range(2):
            p, y = 1 / (1 + np.exp(-guess[k, row, column, name])), truth[k, row, column, name]
            slow[k] -= (1 - p) ** 2 * np.log(p) if y == 1 else (1 - y) ** 4 * p**2 * np.log(1 - p)
        if truth[k, row, column, :2].max() == 1:
            slow[k] += 5 * np.abs(np.log1p(np.exp(guess[k, row, column, -4:])) - truth[k, row, column, -4:]).sum()
    slow /= [2, 1]  # no object: divided by 1
    found = keras.ops.convert_to_numpy(DetectionLoss(reduction=None)(truth, guess))
    np.testing.assert_allclose(found, slow, rtol=1e-5)


def test_average_precision_counts_misses_false_alarms_and_wrong_classes():
    boxes, labels = [np.array([[0, 0, 10, 10.0], [20, 20, 30, 30]])], [np.array([0, 0])]
    hit = [[0, 0, 10, 10]]
    assert tl.average_precision([of(hit, [0], [0.9])], boxes, labels) == pytest.approx(51 / 101)  # one of two
    both = [of([*hit, [20, 20, 30, 30]], [0, 0], [0.9, 0.8])]
    assert tl.average_precision(both, boxes, labels) == 1
    alarm = [of([[40, 40, 50, 50], *hit, [20, 20, 30, 30]], [0, 0, 0], [0.95, 0.9, 0.8])]  # the surest is wrong
    assert tl.average_precision(alarm, boxes, labels) == pytest.approx(2 / 3)
    assert tl.average_precision([of(hit, [1], [0.9])], boxes, labels) == 0
    assert tl.average_precision([of([], [], [])], boxes, labels) == 0
    half = [of([[0, 0, 10, 6]], [0], [0.9])]
    assert tl.average_precision(half, boxes, labels) > 0
    assert tl.average_precision(half, boxes, labels, overlap=0.7) == 0


def test_more_than_a_hundred_objects_of_a_picture_count():
    corners = 20.0 * np.stack(np.meshgrid(np.arange(15), np.arange(10)), -1).reshape(-1, 2)
    boxes, labels = np.concatenate([corners, corners + 10], axis=1), np.zeros(150, int)
    assert tl.average_precision([of(boxes, labels, np.linspace(0.9, 0.5, 150))], [boxes], [labels]) == 1


def test_head_then_top_are_trained_and_audited_as_for_a_classifier(detector):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 60, (96, 32, 32, 3), dtype=np.uint8), rng.integers(2, size=(96, 1))
    corners = rng.integers(0, 20, (96, 2))
    for image, (left, top), (name,) in zip(images, corners, labels, strict=True):
        image[top : top + 12, left : left + 12, :: 1 + name] = 255  # class 1 is not green
    boxes = np.concatenate([corners, corners + 12], axis=1)[:, None].astype(float)
    maps = tl.encode_objects(detector, boxes, labels)
    data = tf.data.Dataset.from_tensor_slices((images, maps)).batch(20)
    quiet = tl.Settings(verbose=0)
    history = tl.train_head(detector, data, data, epochs=30, learning_rate=1e-2, settings=quiet)
    losses = [row["loss"] for row in history.rows]
    assert losses[-1] < losses[0] / 2
    tl.unfreeze_top(detector, stages=1)
    report = tl.fine_tune(detector, data, epochs=1, settings=quiet).audits["fine-tune"]
    assert report.problem is None and "0 batch-norm statistics" in str(report)
    found = tl.detect(detector, images, threshold=0.01)
    assert tl.average_precision(found, boxes, labels, overlap=0.3) > 0.5


def test_a_detector_is_saved_and_loaded_by_keras(detector, scenes, tmp_path):
    detector.compile(loss=DetectionLoss(side_weight=3.0))
    detector.optimizer.build(detector.trainable_variables)
    detector.save(tmp_path / "detector.keras")
    again = keras.saving.load_model(tmp_path / "detector.keras")
    assert again.loss.side_weight == 3.0
    np.testing.assert_allclose(again.predict(scenes[0][:2], verbose=0), detector.predict(scenes[0][:2], verbose=0))


@pytest.mark.parametrize(
    ("name", "size", "side"), [("MobileNetV2", 64, 4), ("MobileNetV2", 72, 5), ("Xception", 75, 5)]
)
def test_the_default_stage_has_a_place_for_each_16_pixels_or_so(name, size, side):
    backbone = tl.load_backbone(name, weights=None, image_size=size)
    assert tl.build_detector(backbone, 3).output_shape == (None, side, side, 7)


@pytest.mark.parametrize(
    ("boxes", "labels", "what"),
    [
        ([[[4, 4, 4, 8]]], [[0]], r"Picture 0: boxes are left, top, right, bottom in pixels within 32 x 32"),
        ([[[4, 4, 8, 33]]], [[0]], "within 32 x 32"),
        ([[[4, 4, 8, 8]]], [[2]], r"needs a label from 0 to 1, got \[2\]"),
        ([[[4, 4, 8, 8]]], [[0.9]], r"from 0 to 1, got \[0.9\]"),
        ([[[4, 4, 8, 8]]], [[0, 1]], "each of 1 boxes needs a label"),
        ([[4, 4, 8]], [[0]], r"boxes are \(objects, 4\), .* got \(3,\)"),
        ([[[4, 4, 8, 8]]], [], "boxes of 1 pictures and labels of 0"),
    ],
)
def test_objects_that_cannot_be_are_refused(detector, boxes, labels, what):
    with pytest.raises(ValueError, match=what):
        tl.encode_objects(detector, boxes, labels)


def test_misuse_is_refused_with_the_next_step(detector, scenes):
    classifier = tl.build_classifier(make_tiny_backbone(32), 3)
    with pytest.raises(ValueError, match=r"task is 'classification'; a detector comes from build_detector\(\)"):
        tl.detect(classifier, scenes[0])
    with pytest.raises(ValueError, match=r"read by detect\(\)"):
        to_probabilities(detector.predict(scenes[0][:2], verbose=0), detector.transfer.task)
    with pytest.raises(ValueError, match="takes pictures of shape"):
        tl.detect(detector, scenes[0][:, :16])
    assert tl.detect(detector, scenes[0][:0]) == []
    for wrong in ({"threshold": 0}, {"threshold": 1.5}, {"most": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be a (number in|whole number of at least 1)"):
            tl.detect(detector, scenes[0], **wrong)
    with pytest.raises(ValueError, match=r"maps of encode_objects\(\), \(pictures, 8, 8, 6\)"):
        labels = tf.data.Dataset.from_tensor_slices((scenes[0], np.zeros(60, int))).batch(20)
        tl.train_head(detector, labels, settings=tl.Settings(verbose=0))
    with pytest.raises(ValueError, match=r"task 'detection' wants \(None, 4, 4, 6\)"):
        tl.build_classifier(make_tiny_backbone(32), 2, task="detection")
    with pytest.raises(TypeError, match="load_backbone"):
        tl.build_detector(classifier, 2)
    with pytest.raises(ValueError, match="at least 1"):
        tl.build_detector(make_tiny_backbone(32), 0)
    with pytest.raises(ValueError, match="No picture has an object"):
        tl.average_precision([of([], [], [])], [np.zeros((0, 4))], [np.zeros(0, int)])
    with pytest.raises(ValueError, match="Pictures: 0 looked at, 1 with boxes"):
        tl.average_precision([], [np.zeros((0, 4))], [np.zeros(0, int)])
    with pytest.raises(ValueError, match="any division by 255"):
        tl.detect(detector, scenes[0] / 255)
    for wrong in ([[50, 50, 10, 10]], np.zeros((0, 4))):
        with pytest.raises(ValueError, match="Picture 0: it takes a label for each true box"):
            tl.average_precision([of([], [], [])], [np.array(wrong)], [np.array([0])])
    with pytest.raises(ValueError, match=r"overlap must be a number in \(0, 1\], got 50"):
        tl.average_precision([of([], [], [])], [np.array([[0, 0, 9, 9]])], [np.array([0])], overlap=50)
    with pytest.raises(ValueError, match="from 32 pixels"):
        tl.make_scenes(1, image_size=16)


def test_a_detector_in_an_artefact_finds_what_it_found_and_so_does_its_export(detector, scenes, tmp_path):
    images = scenes[0][:8]
    folder = tl.save_artifact(tmp_path / "detector", detector, class_names=["one", "other"], examples=images)
    artifact = tl.load_artifact(folder)
    found, before = tl.detect(artifact.model, images, threshold=0.05), tl.detect(detector, images, threshold=0.05)
    assert sum(map(len, found)) > 0
    for one, other in zip(found, before, strict=True):
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-2)
        np.testing.assert_array_equal(one.labels, other.labels)
    assert tl.export_artifact(artifact, tmp_path / "detector.tflite") < 1e-4
    about = json.loads((tmp_path / "detector.tflite.json").read_text())
    assert about["task"] == "detection" and "(batch, rows, columns, 2 + 4)" in about["output"]
    answers = FORMATS[".tflite"].run(tmp_path / "detector.tflite", images[:3].astype("float32"))
    np.testing.assert_allclose(answers, to_answers(detector.predict(images[:3], verbose=0), "detection"), atol=1e-4)


def test_of_places_that_are_all_but_sure_the_surest_is_kept(detector, scenes):
    maps = np.full((1, 8, 8, 6), -9.0)
    maps[0, 2:5, 2:5, 0] = 45.0  # whose scores are all 1 in double precision
    maps[0, 3, 3, 0] = 46.0
    (found,) = tl.detect(answering(detector, maps), scenes[0][:1])
    assert len(found) == 1 and found.labels.tolist() == [0]


def test_an_artefact_of_a_detector_that_was_changed_or_asked_for_classes_is_refused(detector, scenes, tmp_path):
    folder = tl.save_artifact(tmp_path / "detector", detector, class_names=["one", "other"], examples=scenes[0])
    artifact = tl.load_artifact(folder)
    with pytest.raises(ValueError, match=r"read by detect\(\)"):
        artifact.predict(scenes[0][:2])
    with pytest.raises(ValueError, match="3 class names for a model of 2"):
        tl.save_artifact(tmp_path / "three", detector, class_names=["a", "b", "c"], examples=scenes[0])
    broken = [np.full_like(value, np.nan) for value in detector.get_weights()]
    detector.set_weights(broken)
    with pytest.raises(ValueError, match="training diverged"):
        tl.save_artifact(tmp_path / "broken", detector, class_names=["one", "other"], examples=scenes[0])


def test_a_dark_picture_on_the_disk_is_no_divided_one(detector, scenes):
    dark = np.zeros_like(scenes[0][:1])
    dark[0, 0, 0, 0] = 1
    assert dark.dtype == np.uint8 and len(tl.detect(detector, dark)) == 1
    with pytest.raises(ValueError, match="any division by 255"):
        tl.detect(detector, dark.astype("float32"))
