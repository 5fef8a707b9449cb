import math

import keras
import numpy as np
import pytest

from tlkeras.embeddings import effective_rank, nt_xent, spread, vicreg_loss

Z = np.random.default_rng(0).normal(size=(10, 6)).astype("float32")


def number(tensor) -> float:
    return float(keras.ops.convert_to_numpy(tensor))


def test_nt_xent_is_the_double_loop_of_the_paper():
    unit, count, total = Z / np.linalg.norm(Z, axis=1, keepdims=True), len(Z) // 2, 0.0

    def term(i, j):  # equation 1 of Chen et al. 2020
        others = sum(math.exp(unit[i] @ unit[k] / 0.3) for k in range(2 * count) if k != i)
        return -math.log(math.exp(unit[i] @ unit[j] / 0.3) / others)

    for k in range(count):
        total += term(k, k + count) + term(k + count, k)
    assert number(nt_xent(Z, 0.3)) == pytest.approx(total / (2 * count), rel=1e-5)


def test_nt_xent_prefers_views_that_agree_and_pictures_that_do_not():
    apart = np.eye(4, dtype="float32")
    agree, disagree = np.concatenate([apart, apart]), np.concatenate([apart, np.roll(apart, 1, axis=0)])
    assert number(nt_xent(agree, 0.2)) < 0.1 < 2 < number(nt_xent(disagree, 0.2))
    assert number(nt_xent(np.ones_like(agree), 0.2)) == pytest.approx(math.log(7), rel=1e-4)  # all the same: chance


def test_vicreg_is_the_loops_of_the_paper():
    first, second = Z[:5].astype(float), Z[5:].astype(float)
    n, d = first.shape
    similarity = sum(np.sum((first[i] - second[i]) ** 2) for i in range(n)) / n / d
    variance = covariance = 0.0
    for view in (first, second):
        mean = view.mean(axis=0)
        for a in range(d):
            spread_a = sum((view[i, a] - mean[a]) ** 2 for i in range(n)) / (n - 1)
            variance += max(0.0, 1 - math.sqrt(spread_a + 1e-4)) / d
            for b in range(d):
                if a != b:
                    shared = sum((view[i, a] - mean[a]) * (view[i, b] - mean[b]) for i in range(n)) / (n - 1)
                    covariance += shared**2 / d
    expected = 25 * similarity + 10 * variance + 2 * covariance
    assert number(vicreg_loss(Z, 25.0, 10.0, 2.0)) == pytest.approx(expected, rel=1e-5)


def test_vicreg_punishes_a_collapse_by_its_variance_alone():
    same = np.ones((8, 4), "float32")
    assert number(vicreg_loss(same, 25.0, 0.0, 1.0)) == pytest.approx(0, abs=1e-6)
    assert number(vicreg_loss(same, 25.0, 1.0, 1.0)) == pytest.approx(2 * 0.99, rel=1e-3)


def test_spread_is_zero_for_one_direction_and_one_for_all():
    rng = np.random.default_rng(0)
    assert spread(np.outer(rng.uniform(1, 9, 500), np.ones(16))) < 1e-6
    assert spread(rng.normal(size=(5000, 16))) == pytest.approx(1, abs=0.01)


def test_effective_rank_counts_directions():
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(4000, 3)) @ np.linalg.qr(rng.normal(size=(20, 20)))[0][:3]
    assert effective_rank(flat) == pytest.approx(3, abs=0.05)
    assert effective_rank(flat + 7) == pytest.approx(3, abs=0.05)  # the mean is no direction
    assert effective_rank(rng.normal(size=(4000, 20))) > 19
