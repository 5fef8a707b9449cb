import numpy as np
import pytest
import tensorflow as tf

from tlkeras.views import crop, jitter, two_views

DRAW = tf.constant([3, 16], tf.int64)
IMAGES = tf.constant(np.random.default_rng(0).integers(0, 256, (200, 24, 24, 3)), tf.float32)


def ramps() -> tf.Tensor:
    """Pictures whose red is the row and whose green is the column, so that a window can be read off."""
    y, x = np.meshgrid(np.arange(32), np.arange(32), indexing="ij")
    return tf.constant(np.repeat(np.stack([y, x, 0 * x], axis=-1)[None], 500, axis=0), tf.float32)


def test_windows_have_the_areas_asked_for_and_half_are_mirrored():
    cut = crop(ramps(), DRAW, 0.25).numpy()
    height, width = np.ptp(cut[..., 0], axis=(1, 2)) / 31, np.ptp(cut[..., 1], axis=(1, 2)) / 31
    area = height * width
    assert 0.2 < area.min() < 0.3 and area.max() > 0.85
    assert 0.5 < (height / width).min() and (height / width).max() < 2
    mirrored = cut[:, 0, 0, 1] > cut[:, 0, -1, 1]
    assert 0.4 < mirrored.mean() < 0.6
    assert cut.min() >= 0 and cut.max() <= 31


def test_the_largest_window_loses_no_more_than_its_shape_costs():
    cut = crop(ramps(), DRAW, 1.0).numpy()
    area = np.ptp(cut[..., 0], axis=(1, 2)) * np.ptp(cut[..., 1], axis=(1, 2)) / 31**2
    assert 0.86 < area.min() < 0.88 and area.max() == pytest.approx(1, abs=0.01)


def test_views_of_a_picture_differ_and_the_same_draw_gives_the_same():
    views = two_views(IMAGES, DRAW, 0.2, 0.5).numpy()
    assert views.shape == (400, 24, 24, 3) and 0 <= views.min() and views.max() <= 255
    assert np.abs(views[:200] - views[200:]).mean(axis=(1, 2, 3)).min() > 5
    assert np.array_equal(views, two_views(IMAGES, DRAW, 0.2, 0.5).numpy())
    assert not np.array_equal(views, two_views(IMAGES, DRAW + 16, 0.2, 0.5).numpy())


def test_jitter_turns_a_fifth_grey_and_strength_zero_changes_nothing_else():
    changed = jitter(IMAGES, DRAW, 0.0).numpy()
    grey = np.ptp(changed, axis=-1).max(axis=(1, 2)) < 0.01
    assert 0.1 < grey.mean() < 0.3
    np.testing.assert_allclose(changed[~grey], IMAGES.numpy()[~grey], atol=0.01)


def test_jitter_changes_light_and_colour_by_its_strength():
    plain = tf.fill((500, 4, 4, 3), 100.0)
    means = jitter(plain, DRAW, 0.5).numpy().mean(axis=(1, 2))
    assert np.ptp(means.mean(axis=1)) > 60  # light
    assert np.ptp(means, axis=1).max() > 15  # colour
    assert means.mean() == pytest.approx(100, abs=5)
