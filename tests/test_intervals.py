from __future__ import annotations

import numpy as np
import pytest

from tlkeras.intervals import class_mean_intervals, mean_interval, paired_interval, wilson_interval


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


def test_mean_interval_by_hand():
    # Standard deviation 0.02, t(2) = 4.3027.
    interval = mean_interval([0.90, 0.92, 0.94])
    assert interval.value == pytest.approx(0.92)
    assert interval.high - interval.value == pytest.approx(4.3027 * 0.02 / np.sqrt(3), abs=1e-5)
    with pytest.raises(ValueError, match="two finite values"):
        mean_interval([0.9])


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    # 2 x 20 pictures at 95 %: here the percentile bootstrap covers only about 88 to 91 %.
    generator, covered = np.random.default_rng(3), 0
    for _ in range(300):
        first, second = generator.binomial(20, 0.95, 2)
        score, _ = class_mean_intervals(np.array([[first, 20 - first], [20 - second, second]]))
        assert score.low <= score.value <= score.high
        covered += score.low <= 0.95 <= score.high
    assert covered / 300 > 0.92


def test_a_paired_interval_by_hand():
    # Agresti and Min: centre 5 / 22, half 1.96 * sqrt(8 - 25 / 22) / 22.
    interval = paired_interval(6, 1, 20)
    assert interval.value == 5 / 20
    assert interval.low == pytest.approx(5 / 22 - 1.96 * np.sqrt(8 - 25 / 22) / 22, abs=1e-4)
    assert paired_interval(1, 6, 20).high == pytest.approx(-interval.low)
    assert paired_interval(0, 0, 20).low < 0 < paired_interval(0, 0, 20).high


@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_a_perfect_score_is_as_sure_as_its_pictures_whatever_their_number(num_classes):
    for each in (*range(40, 60), 78, 99, 156, 162):
        pictures = num_classes * each
        for interval in class_mean_intervals(np.eye(num_classes, dtype=int) * each):
            assert interval.value == 1 and interval.low == pytest.approx(wilson_interval(pictures, pictures).low)
