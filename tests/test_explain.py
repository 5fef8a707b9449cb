"""Claims about Grad-CAM: it is the paper's formula, on any classifier of ours, in any state."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from conftest import make_tiny_backbone

import tlkeras as tl
from tlkeras.explain import write_heat
from tlkeras.predictions import Predictions


@pytest.fixture(scope="module")
def squares():
    """40 grey pictures with a bright square, red or green, somewhere; where it lies; and which colour."""
    rng = np.random.default_rng(0)
    images, places = rng.integers(90, 110, (40, 32, 32, 3)).astype("uint8"), np.zeros((40, 32, 32), bool)
    labels = np.arange(40) % 2
    for image, place, label, (top, left) in zip(images, places, labels, rng.integers(0, 22, (40, 2)), strict=True):
        place[top : top + 10, left : left + 10] = True
        image[place] = (230, 20, 20) if label == 0 else (20, 230, 20)
    return images, places, labels


@pytest.fixture(scope="module")
def told_apart(squares):
    """A classifier that has learnt the two colours."""
    images, _, labels = squares
    keras.utils.set_random_seed(0)
    model = tl.build_classifier(make_tiny_backbone(), 2)
    tl.train_from_scratch(model, tl.make_batches(images, labels, batch_size=20, seed=0), epochs=30)
    assert np.all(model.predict(images, verbose=0).argmax(axis=1) == labels)
    return model


def test_the_heat_lies_where_the_classes_differ(told_apart, squares):
    images, places, labels = squares
    heat = tl.grad_cam(told_apart, images, labels, against=None, stage="drop_1")
    assert heat.shape == (40, 32, 32) and heat.dtype == np.float32 and heat.min() >= 0 and heat.max() == 1
    on_it = (heat * places).sum(axis=(1, 2)) / heat.sum(axis=(1, 2))
    assert np.median(on_it) > 3 * places.mean(), "the heat lies on the squares no more than anywhere"


def test_it_is_the_formula_of_the_paper(told_apart, squares):
    images = squares[0][:3]
    pooled, logits = told_apart.get_layer("pool"), told_apart.get_layer("logits")
    maps = keras.Model(told_apart.inputs[0], pooled.input).predict(images.astype("float32"), verbose=0)
    kernel = logits.get_weights()[0]  # of a linear head on the mean over the places the slope is the kernel itself
    for number in range(2):
        slow = np.maximum(np.einsum("nhwc,c->nhw", maps, kernel[:, number]), 0)
        slow = keras.ops.convert_to_numpy(keras.ops.image.resize(slow[..., None], (32, 32)))[..., 0]
        most = slow.max(axis=(1, 2), keepdims=True)
        slow = np.divide(slow, most, out=np.zeros_like(slow), where=most > 0)
        np.testing.assert_allclose(tl.grad_cam(told_apart, images, number), slow, atol=1e-5)


def test_by_default_it_speaks_for_what_is_predicted(told_apart, squares):
    images, _, labels = squares
    np.testing.assert_array_equal(tl.grad_cam(told_apart, images), tl.grad_cam(told_apart, images, labels))
    assert not np.allclose(tl.grad_cam(told_apart, images), tl.grad_cam(told_apart, images, 1 - labels))


def test_many_pictures_give_what_each_alone_gives(told_apart, squares):
    images = squares[0]
    together = tl.grad_cam(told_apart, images, against=0, classes=1)
    np.testing.assert_allclose(together[35:37], tl.grad_cam(told_apart, images[35:37], 1, against=0), atol=1e-5)


def test_one_logit_speaks_for_either_class():
    model = tl.build_classifier(make_tiny_backbone(), 2, task="binary")
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3))
    one, other = (tl.grad_cam(model, images, number) for number in (1, 0))
    assert one.any() or other.any()
    assert not np.any((one > 0.5) & (other > 0.5)), "what speaks for a class speaks against the other"


def test_frozen_and_unfrozen_look_at_the_same_and_nothing_is_changed(told_apart, squares):
    images, before = squares[0][:2], told_apart.get_weights()
    tl.unfreeze_top(told_apart, 1.0, batch_norm=True)
    first = tl.grad_cam(told_apart, images)
    tl.freeze(told_apart)
    np.testing.assert_array_equal(tl.grad_cam(told_apart, images), first)
    for now, then in zip(told_apart.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_a_loaded_artefact_is_explained_as_the_model_was(told_apart, squares, tmp_path):
    images = squares[0][:4]
    folder = tl.save_artifact(tmp_path / "model", told_apart, class_names=["red", "green"], examples=images)
    loaded = tl.load_artifact(folder).model
    np.testing.assert_allclose(tl.grad_cam(loaded, images), tl.grad_cam(told_apart, images), atol=1e-4)


MORE = [pytest.param(net, marks=pytest.mark.slow) for net in ("ResNet50", "EfficientNetB0", "NASNetMobile", "Xception")]


@pytest.mark.parametrize("name", ["MobileNetV3Small", "VGG16", *MORE])
def test_every_kind_of_net_is_explained_at_every_stage(name):
    size = 71 if name == "Xception" else 64  # the least that it takes
    model = tl.build_classifier(tl.load_backbone(name, weights=None, image_size=size), 3)
    images = np.random.default_rng(0).integers(0, 256, (1, size, size, 3))
    for stage in model.transfer.stages:
        heat = tl.grad_cam(model, images, stage=stage)
        assert heat.shape == (1, size, size) and np.isfinite(heat).all() and heat.max() in (0, 1)


def test_what_cannot_be_explained_is_refused(told_apart, squares):
    images = squares[0]
    with pytest.raises(ValueError, match="no stage 'drop_9'; it has drop_0, drop_1, drop_2"):
        tl.grad_cam(told_apart, images, stage="drop_9")
    with pytest.raises(ValueError, match=r"takes pictures \(n, 32, 32, 3\), got \(40, 16, 16, 3\)"):
        tl.grad_cam(told_apart, images[:, ::2, ::2])
    with pytest.raises(ValueError, match="no class 2: the model has 2"):
        tl.grad_cam(told_apart, images, 2)
    with pytest.raises(ValueError, match="no class -1"):
        tl.grad_cam(told_apart, images, against=-1)
    with pytest.raises(ValueError, match=r"40 pictures, but classes \(3,\)"):
        tl.grad_cam(told_apart, images, [0, 1, 0])
    for odd in (1.0, "bee", [True, False] * 20):
        with pytest.raises(ValueError, match="There is no class"):
            tl.grad_cam(told_apart, images, odd)
    with pytest.raises(ValueError, match="against is one class"):
        tl.grad_cam(told_apart, images, against=[0, 1])
    with pytest.raises(ValueError, match="speaks for a class; this model does regression"):
        tl.grad_cam(tl.build_classifier(make_tiny_backbone(), 1, task="regression"), images)


def test_a_stage_may_be_named_by_its_number(told_apart, squares):
    images, stages = squares[0][:2], told_apart.transfer.stages
    for number in (0, -2):
        np.testing.assert_array_equal(
            tl.grad_cam(told_apart, images, stage=number), tl.grad_cam(told_apart, images, stage=stages[number])
        )
    assert not np.allclose(tl.grad_cam(told_apart, images, stage=0), tl.grad_cam(told_apart, images))


def test_nan_is_not_taken_for_a_picture_without_heat(squares):
    model = tl.build_classifier(make_tiny_backbone(), 2)
    model.set_weights([np.full_like(value, np.nan) for value in model.get_weights()])
    with pytest.raises(ValueError, match="NaN or infinity: its training diverged"):
        tl.grad_cam(model, squares[0][:2])


def test_pictures_that_are_not_raw_get_no_map(told_apart, squares):
    images = squares[0][:2].astype("float32")
    with pytest.raises(ValueError, match=r"raw, in \[0, 255\]; these lie in \[0.0784, 0.902\]"):
        tl.grad_cam(told_apart, images / 255)
    images[1, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"these lie in \[nan, nan\]"):
        tl.grad_cam(told_apart, images)
    dark = np.ones((1, 32, 32, 3), "uint8")  # whole numbers of a file are raw, however dark
    assert np.isfinite(tl.grad_cam(told_apart, dark)).all()


def test_files_of_heat_bear_names_that_a_disk_takes(told_apart, squares, tmp_path):
    images, names = squares[0][:3], ("a/x.jpg", "b/x.jpg", "蚂" * 83 + ".jpg")
    predictions = Predictions(None, np.eye(2)[[0, 1, 1]], names, ("red", "green"))
    files = write_heat(tmp_path / "heat", told_apart, images, predictions)
    assert [file.name for file in files[:2]] == ["001_x.png", "002_x.png"] and all(file.exists() for file in files)
    assert files[2].name.startswith("003_蚂蚂")
    (later,) = write_heat(
        tmp_path / "heat", told_apart, images[:1], Predictions(None, np.eye(2)[[0]], names[:1], ("red", "green")), 3
    )
    with pytest.raises(FileExistsError):
        write_heat(tmp_path / "heat", told_apart, images, predictions)
    assert later.name == "004_x.png" and all(file.exists() for file in files)


def test_heat_colours_hot_places_only():
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3))
    heat = np.zeros((2, 4, 4))
    heat[1, 0, 0] = 1
    seen, grey = tl.overlay_heat(images, heat).astype(int), images.mean(axis=-1, keepdims=True)
    cold = heat == 0
    assert np.all(np.ptp(seen[cold], axis=-1) == 0) and np.all(np.abs(seen - grey)[cold] <= 0.5)
    assert np.ptp(seen[1, 0, 0]) > 100
    with pytest.raises(ValueError, match="does not lie on"):
        tl.overlay_heat(images, heat[:, :2])
