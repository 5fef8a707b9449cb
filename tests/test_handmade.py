import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from tlkeras.handmade import colour_histogram, hog_features
from tlkeras.probes import fit_probe


def stripes(vertical):
    image = np.zeros((32, 32, 3))
    image[:, ::4] = 255
    return image if vertical else image.transpose(1, 0, 2)


def test_hog_sees_the_direction_of_edges_and_no_colour():
    upright, flat = (hog_features(stripes(vertical)[None], cells=4)[0].reshape(-1, 9) for vertical in (True, False))
    assert upright.shape == (3 * 3 * 4, 9)
    assert np.all(upright.argmax(axis=1) == 0) and np.all(flat.argmax(axis=1) == 4)  # bins of 20 degrees


def test_hog_tells_handwritten_digits_apart():
    digits = load_digits()
    images = np.repeat(np.repeat(digits.images[:400, :, :, None], 4, 1), 4, 2).repeat(3, axis=3) * 15.9
    features = hog_features(images, cells=4)
    probe = fit_probe(features[:300], digits.target[:300])
    assert probe.score(features[300:], digits.target[300:400]) > 0.85


def test_colours_are_counted_and_places_are_not():
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3))
    counts = colour_histogram(images, bins=4)
    assert counts.shape == (2, 64)
    np.testing.assert_allclose(counts.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(colour_histogram(images[:, ::-1], bins=4), counts)
    red_low, green_high, blue_middle = images[0].reshape(-1, 3).T
    expected = np.mean((red_low < 64) & (green_high >= 192) & (blue_middle >= 64) & (blue_middle < 128))
    assert counts[0, 0 * 16 + 3 * 4 + 1] == pytest.approx(expected)


def test_what_is_no_picture_is_refused():
    with pytest.raises(ValueError, match=r"got \(4, 4, 3\)"):
        colour_histogram(np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match="8 cells need 32 pixels"):
        hog_features(np.zeros((1, 16, 16, 3)))


def test_without_scikit_image_hog_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.feature", None)
    with pytest.raises(ImportError, match="pip install scikit-image"):
        hog_features(np.zeros((1, 32, 32, 3), np.uint8))
