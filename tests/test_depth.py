import dataclasses

import numpy as np
import pytest
from scipy.stats import t
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedShuffleSplit

from tlkeras.depth import cut, probe, resampled_interval
from tlkeras.features import Features


@pytest.fixture(scope="module")
def pictures():
    """Three stages of the same 300 digits: noise, the digits, and the digits in noise."""
    rng = np.random.default_rng(0)
    images, labels = load_digits(return_X_y=True)
    images, labels = images[:300] / 16, labels[:300] % 3
    noise = rng.normal(size=images.shape)
    return {"noise": noise, "clean": images, "noisy": images + 0.5 * noise}, labels


def part(pictures, rows):
    stages, labels = pictures
    return Features({name: values[rows] for name, values in stages.items()}, labels[rows], "keras float32", 0)


def test_held_out_pictures_name_the_best_stage_and_how_sure_it_is(pictures):
    table = probe(part(pictures, slice(0, 200)), part(pictures, slice(200, 300)))
    assert table.best == "clean"
    assert table.p_value < 0.05 and 0 < table.gain.low < table.gain.value
    assert table.gain.value == pytest.approx(table.intervals["clean"].value - table.intervals["noisy"].value)
    assert f"clean is ahead of the last stage by {100 * table.gain.value:.1f} points (" in str(table)


def test_resamples_come_to_the_same_finding(pictures):
    table = probe(part(pictures, slice(None)), num_resamples=4)
    assert table.best == "clean" and table.gain.low > 0 and table.p_value < 0.05
    assert table.to_dict()["stages"][0]["name"] == "noise" and "4 resamples" in table.method


def test_the_last_stage_has_nothing_to_gain_over_itself(pictures):
    stages, labels = pictures
    table = probe(part(({"noise": stages["noise"], "clean": stages["clean"]}, labels), slice(None)), num_resamples=2)
    assert (table.best, table.gain.value, table.p_value) == ("clean", 0, 1)
    assert "the last stage, clean, is the best" in str(table)


def test_a_group_never_lies_on_both_sides(pictures):
    """Each group is one picture many times over with a label of its own: only a leak could be learnt."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 5)
    values, labels = rng.normal(size=(60, 40))[groups], rng.integers(0, 2, 60)[groups]
    features = Features({"only": values}, labels, "keras float32", 0)
    assert probe(features, num_resamples=3).intervals["only"].value > 0.95
    assert probe(features, groups=groups, num_resamples=3).intervals["only"].value < 0.75


@pytest.mark.parametrize("num_groups", [2, 3])
def test_fewer_groups_than_folds_are_cut_by_group(num_groups):
    """The cameras of a small set: a cut holds one of them out at least."""
    labels, groups = np.arange(60) % 2, np.arange(60) // 2 % num_groups
    for train, test in cut(labels, groups, 3, seed=0):
        assert len(test) and not set(groups[train]) & set(groups[test])
        assert sorted([*train, *test]) == list(range(60))
    features = Features({"only": np.random.default_rng(0).normal(size=(60, 4))}, labels, "keras float32", 0)
    assert "3 resamples" in probe(features, groups=groups, num_resamples=3).method


def test_groups_of_unequal_size_are_dealt_anew_in_each_resample():
    sizes = np.arange(20, 0, -1)
    groups, labels = np.repeat(np.arange(20), sizes), np.repeat(np.arange(20) % 2, sizes)
    tests = [frozenset(groups[test]) for _, test in cut(labels, groups, 30, seed=0)]
    assert len(set(tests)) > 25
    assert all(3 <= sum(group in test for test in tests) <= 14 for group in range(20))  # 7.5 are expected


def test_many_classes_of_three_pictures_are_each_on_both_sides():
    labels = np.arange(30) % 10
    for groups in (None, np.arange(30), np.arange(30) // 10):
        for train, test in cut(labels, groups, 3, seed=0):
            assert set(labels[train]) == set(labels[test]) == set(range(10))


def test_cuts_of_enough_pictures_are_those_of_scikit_learn():
    labels = np.arange(61) % 3
    expected = StratifiedShuffleSplit(2, test_size=0.25, random_state=7).split(labels, labels)
    for ours, theirs in zip(cut(labels, None, 2, seed=7), expected, strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])


@pytest.mark.parametrize(
    ("labels", "groups", "message"),
    [
        (np.arange(60) % 2, list(range(50)), "groups needs one key a picture: expected 60, got 50"),
        (np.arange(60) % 2, ["a"] * 50, "expected 60, got 50"),
        (np.arange(60) % 2, ["a"] * 60, "All 60 pictures are of one group.*2 groups or more"),
        (np.arange(60) % 2, np.arange(60) % 2, "leaves 0 pictures of class [01] .* of several groups"),
        (np.arange(20) % 10, None, r"leaves 1 pictures of class \d to learn from"),
        (np.minimum(np.arange(20), 2) % 3, None, "leaves 1 pictures of class [01] to learn from"),
        (np.linspace(0, 1, 60), None, r"one class .* got float64 labels \(60,\)"),
        (np.zeros((60, 3)), None, r"got float64 labels \(60, 3\).*train_head"),
    ],
)
def test_what_cannot_be_cut_is_refused(labels, groups, message):
    values = np.random.default_rng(0).normal(size=(len(labels), 4))
    with pytest.raises(ValueError, match=message):
        probe(Features({"only": values}, labels, "keras float32", 0), groups=groups, num_resamples=2)


def test_the_correction_widens_the_interval_by_what_the_cuts_share():
    values = np.array([0.01, 0.03, 0.02, 0.05])
    interval, p_value = resampled_interval(values, 1 / 3, 100)
    error = np.sqrt((1 / 4 + 1 / 3) * values.var(ddof=1))
    assert interval.high - interval.value == pytest.approx(t.ppf(0.975, 3) * error)
    assert p_value == pytest.approx(2 * t.sf(values.mean() / error, 3))
    assert resampled_interval(np.zeros(3), 0.3, 100)[1] == 1


def test_resamples_that_agree_to_the_last_picture_are_not_called_certain():
    interval, p_value = resampled_interval(np.full(5, 1 / 12), 1 / 3, 12)
    assert p_value > 0 and interval.low < 1 / 12 < interval.high


@pytest.mark.parametrize("kind", ["svm", "knn", "centroid"])
def test_other_classifiers_probe_too(pictures, kind):
    table = probe(part(pictures, slice(0, 200)), part(pictures, slice(200, 300)), kind=kind)
    assert table.best == "clean" and table.intervals["clean"].value > 0.75


def test_what_does_not_fit_is_refused(pictures):
    everything = part(pictures, slice(None))
    with pytest.raises(ValueError, match=r"\['x'\] are not those of training"):
        probe(everything, Features({"x": np.zeros((2, 2))}, np.zeros(2, int), "", 0))
    with pytest.raises(ValueError, match="num_resamples must be a whole number of at least 2, got 1"):
        probe(everything, num_resamples=1)
    with pytest.raises(ValueError, match="'softmax', 'svm', 'knn', 'centroid', got 'tree'"):
        probe(everything, kind="tree")


def test_groups_may_be_pairs_but_not_missing():
    labels = np.arange(60) % 2
    pairs = [("clinic", number // 4) for number in range(60)]
    for train, test in cut(labels, pairs, 3, seed=0):
        assert len(test) and not {pairs[k] for k in train} & {pairs[k] for k in test}
    with pytest.raises(ValueError, match="some are None"):
        next(cut(labels, [None, *["a"] * 59], 3, seed=0))


def test_held_out_labels_are_one_class_a_picture():
    values = np.random.default_rng(0).normal(size=(40, 3))
    train, held_out = (Features({"only": values}, labels, "keras", 40) for labels in (np.arange(40) % 2,) * 2)
    with pytest.raises(ValueError, match=r"one class .* got int64 labels \(40, 1\)"):
        probe(train, dataclasses.replace(held_out, labels=held_out.labels[:, None]))


@pytest.mark.parametrize(("num_classes", "each"), [(50, 4), (100, 4), (200, 5)])
def test_one_pair_of_look_alikes_does_not_keep_small_classes_from_being_cut(num_classes, each):
    labels, groups = np.repeat(np.arange(num_classes), each), np.arange(num_classes * each)
    groups[1] = groups[0]
    for seed in range(3):
        for train, test in cut(labels, groups, 3, seed=seed):
            assert np.bincount(labels[train], minlength=num_classes).min() >= 2
            assert len(test) > num_classes / 2 and not set(groups[train]) & set(groups[test])
            assert sorted([*train, *test]) == list(range(len(labels)))
