import dataclasses
import json

import numpy as np
import pytest

from tlkeras.advisor import Advice, advise, rank_backbones
from tlkeras.backbones import load_backbone
from tlkeras.depth import probe
from tlkeras.fractals import make_fractals
from tlkeras.loaders import load_arrays
from tlkeras.recipes import transfer
from tlkeras.runs import _strategy
from tlkeras.settings import Settings
from tlkeras.splits import Split


def fractals(per_class, num_classes=3):
    split = Split(validation=0.25, near_duplicates=False)
    return load_arrays(*make_fractals(num_classes, per_class, image_size=64), split=split)


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(weights="embedded", image_size=64)


@pytest.fixture(scope="module")
def followed(backbone):
    """Training as the advisor has it from 12 pictures a class."""
    return transfer(fractals(16), backbone, strategy="auto")


@pytest.mark.parametrize(("per_class", "cell", "strategy"), [(16, "little", "probe"), (80, "much", "probe+fine-tune")])
def test_near_pictures_are_met_by_a_probe_or_by_fine_tuning_as_their_number_allows(
    backbone, followed, per_class, cell, strategy
):
    advice = followed.advice if per_class == 16 else advise(fractals(per_class), backbone)
    assert advice.cell == f"{cell} data, near"
    assert advice.chosen.strategy == strategy and advice.chosen.stage == backbone.stages[-1]
    assert f"{0.75 * per_class:.0f} a class" in str(advice)


def test_where_an_early_stage_is_surely_better_the_probe_sits_there(backbone):
    """Classes that differ in a fine texture only, which later stages of this network average away."""
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 2
    grid = np.indices((64, 64)).sum(axis=0) % 2 * 24.0
    noise = rng.normal(0, 25, (120, 16, 16, 3)).repeat(4, axis=1).repeat(4, axis=2)
    images = 128 + noise + np.where(labels[:, None, None] == 1, grid, 12.0)[..., None]
    data = load_arrays(images.clip(0, 255).astype("uint8"), labels, split=Split(near_duplicates=False))
    advice = advise(data, backbone)
    assert advice.cell.endswith("far") and advice.chosen.stage != backbone.stages[-1]


@pytest.mark.parametrize(("p_value", "distance"), [(0.02, "near"), (0.001, "far")])
def test_the_best_of_all_stages_must_be_surer_than_one_named_before(backbone, monkeypatch, p_value, distance):
    def early(features, **rest):
        return dataclasses.replace(probe(features, **rest), best=list(features.stages)[0], p_value=p_value)

    monkeypatch.setattr("tlkeras.advisor.probe", early)
    advice = advise(fractals(16), backbone)
    assert advice.cell == f"little data, {distance}"
    assert f"p = {p_value:.2g} (sure below {0.05 / (len(backbone.stages) - 1):.2g})" in str(advice)


def test_the_advice_is_followed_and_kept(followed):
    assert followed.strategy == followed.advice.chosen.strategy == "probe"
    assert followed.history.kept == {"probe": 1}


def test_advice_that_was_kept_is_followed_without_measuring_again(followed, backbone, tmp_path):
    kept = Advice.from_dict(json.loads(json.dumps(followed.advice.to_dict())))
    assert kept == followed.advice
    again = transfer(fractals(16), backbone, strategy=kept)
    assert again.advice is kept and again.strategy == "probe"

    (tmp_path / "advice.json").write_text(json.dumps(kept.to_dict()))  # a run of `fit` that goes on
    assert _strategy(tmp_path, {"strategy": "auto", "seed": 0}, fractals(16), backbone) == kept


def test_a_small_budget_looks_at_fewer_pictures(backbone, monkeypatch):
    seen = []
    monkeypatch.setattr("tlkeras.advisor.probe", lambda features, **rest: seen.append(len(features.labels)) or 1 / 0)
    for budget in (1e-6, 60):
        with pytest.raises(ZeroDivisionError):
            advise(fractals(80), backbone, budget=budget)
    assert seen[0] < seen[1] == 180


def test_a_rare_class_is_measured_however_small_the_budget(backbone, monkeypatch):
    rng = np.random.default_rng(0)
    rare = np.arange(240) % 24 == 5
    images = rng.integers(0, 120, (240, 64, 64, 3)) + 80 * rare[:, None, None, None]
    split = Split(validation=0.25, near_duplicates=False)
    data = load_arrays(images.astype("uint8"), rare.astype(int), split=split, batch_size=4)
    assert data.counts["train"]["1"] < 9
    seen = {}
    monkeypatch.setattr(
        "tlkeras.advisor.probe", lambda features, **rest: seen.update(labels=features.labels) or probe(features, **rest)
    )
    for seed in (0, 1):
        advice = advise(data, backbone, budget=1e-6, seed=seed)
        assert (seen["labels"] == 1).sum() == min(data.counts["train"]["1"], 8) and len(seen["labels"]) < 60
        assert "too few to measure" not in str(advice)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.linspace(0, 1, 40), r"one class a picture; these labels are float32, \(32,\)"),
        (np.arange(120).reshape(40, 3) % 2, r"float32, \(32, 3\). For values, .* train_head"),
    ],
)
def test_labels_that_are_no_classes_are_refused_at_the_door(backbone, labels, message):
    images = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
    data = load_arrays(images, labels.astype("float32"), split=Split(near_duplicates=False))
    with pytest.raises(ValueError, match=message):
        advise(data, backbone)
    with pytest.raises(ValueError, match=message):
        rank_backbones(data, ["MobileNetV2", "MobileNet"])


def test_what_cannot_be_measured_is_refused(backbone):
    with pytest.raises(ValueError, match="has 3 training pictures; measuring takes 4"):
        advise(fractals(4), backbone)
    with pytest.raises(ValueError, match=r"budget must be a number in \(0, inf\], got 0"):
        advise(fractals(16), backbone, budget=0)
    with pytest.raises(ValueError, match="two networks or more"):
        rank_backbones(fractals(16), ["MobileNetV2"])


def test_a_ranking_names_the_score_that_sorts_it(shared, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(shared / "keras_home"))
    images, labels = make_fractals(3, 12, image_size=224)
    rows = rank_backbones(load_arrays(images, labels, split=Split(near_duplicates=False)), ["MobileNetV2", "MobileNet"])
    assert [row["log_me"] for row in rows] == sorted((row["log_me"] for row in rows), reverse=True)
    assert {"name", "h_score", "top1", "seconds"} <= set(rows[0])


def test_a_network_whose_weights_are_out_of_reach_is_not_ranked_by_others_under_its_name(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(ValueError, match="Weights of 0 of these networks are in reach, and a ranking takes two"):
        rank_backbones(fractals(8), ["MobileNetV2", "MobileNet"])


def test_any_budget_and_any_number_for_stages_will_do(backbone):
    assert advise(fractals(8), backbone, budget=float("inf")).cell
    assert transfer(fractals(8), backbone, stages=np.int64(1), settings=Settings(verbose=0)).strategy


def test_pictures_that_belong_together_are_not_measured_on_both_sides(backbone):
    """Each patient is one picture six times over, with a class by chance: nothing can be learnt but the patient."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(30), 6)
    images = rng.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)[patients]
    images = (images * 0.9 + rng.integers(0, 20, images.shape)).astype("uint8")
    labels = rng.integers(0, 2, 30)[patients]
    data = load_arrays(images, labels, split=Split(groups=patients, near_duplicates=False))
    figures = {}

    def spy(features, *, groups, **rest):
        figures["table"] = probe(features, groups=groups, **rest)
        return figures["table"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tlkeras.advisor.probe", spy)
        advise(data, backbone)
    assert max(interval.value for interval in figures["table"].intervals.values()) < 0.8


def test_too_few_pictures_to_measure_the_slope_are_not_called_flat(backbone):
    advice = advise(fractals(6), backbone)
    assert advice.more_data and "too few to measure" in str(advice)
