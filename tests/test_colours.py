import keras
import numpy as np
import pytest

from tlkeras.colours import hue_bins, lab_to_rgb, nearest_bin, rebalancing, rgb_to_lab

COLOURS = np.random.default_rng(0).uniform(0, 255, (500, 3)).astype("float32")


def lab(colours):
    return keras.ops.convert_to_numpy(rgb_to_lab(colours))


def test_lab_is_that_of_scikit_image():
    colour = pytest.importorskip("skimage.color")
    np.testing.assert_allclose(lab(COLOURS), colour.rgb2lab(COLOURS / 255), atol=0.02)


def test_grey_has_no_hue_and_white_is_a_hundred():
    greys = np.linspace(0, 255, 20)[:, None].repeat(3, axis=1)
    assert np.abs(lab(greys)[:, 1:]).max() < 0.02
    assert lab(greys)[[0, -1], 0] == pytest.approx([0, 100], abs=0.01)


def test_colours_come_back():
    np.testing.assert_allclose(lab_to_rgb(lab(COLOURS)), COLOURS, atol=0.2)


@pytest.mark.parametrize("grid", [10, 20])
def test_every_colour_has_a_bin_within_half_a_diagonal(grid):
    bins, ab = hue_bins(grid), lab(COLOURS)[:, 1:]
    chosen = bins[keras.ops.convert_to_numpy(nearest_bin(ab, bins))]
    distance = np.linalg.norm(ab[:, None] - bins[None], axis=2)
    np.testing.assert_allclose(np.linalg.norm(ab - chosen, axis=1), distance.min(axis=1), atol=1e-3)
    assert np.linalg.norm(ab - chosen, axis=1).max() < 0.75 * grid


def test_the_number_of_bins_is_the_one_documented():
    assert [len(hue_bins(grid)) for grid in (10, 20)] == [260, 74]


def test_rare_colours_weigh_more_and_the_mean_weight_is_one():
    frequency = np.array([0.7, 0.2, 0.1, 0.0])
    weights = rebalancing(frequency, 0.5)
    assert (np.diff(weights) > 0).all()
    assert frequency @ weights == pytest.approx(1)
    assert weights[3] / weights[0] == pytest.approx((0.35 + 0.125) / 0.125)  # equation 4 of Zhang et al. by hand
    np.testing.assert_allclose(rebalancing(frequency, 0.0), 1, rtol=1e-6)
    with pytest.raises(ValueError, match="rebalance"):
        rebalancing(frequency, 1.0)
