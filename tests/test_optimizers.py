import math

import keras
import numpy as np
import pytest
from conftest import make_tiny_backbone

from tlkeras.freezing import unfreeze_top
from tlkeras.heads import build_classifier
from tlkeras.optimizers import DiscriminativeAdam, learning_rate_factors, warmup_cosine


def make_variables():
    return [keras.Variable(np.zeros(3), name=name) for name in ("low", "top", "head")]


def step(optimizer, variables, gradients):
    before = [np.array(v) for v in variables]
    optimizer.apply([keras.ops.convert_to_tensor(g, "float32") for g in gradients], variables)
    return [np.array(v) - b for v, b in zip(variables, before, strict=True)]


def test_steps_are_multiplied_by_the_factor_over_many_updates():
    factors, rng = {"low": 0.01, "top": 0.1}, np.random.default_rng(0)
    scaled, plain = make_variables(), make_variables()
    ours, adam = DiscriminativeAdam(0.5, factors=factors), keras.optimizers.Adam(0.5)
    for _ in range(5):
        gradients = rng.normal(size=(3, 3))
        for factor, a, b in zip(
            (0.01, 0.1, 1.0), step(ours, scaled, gradients), step(adam, plain, gradients), strict=True
        ):
            np.testing.assert_allclose(a, factor * b, rtol=1e-3)


def test_scaling_the_gradients_instead_changes_no_step():
    gradient = np.array([1.0, -2.0, 3.0])
    full = step(keras.optimizers.Adam(0.5), make_variables(), [gradient] * 3)
    scaled = step(keras.optimizers.Adam(0.5), make_variables(), [0.1 * gradient] * 3)
    np.testing.assert_allclose(scaled, full, rtol=1e-4)


def test_factors_survive_serialization():
    optimizer = keras.optimizers.deserialize(keras.optimizers.serialize(DiscriminativeAdam(0.5, factors={"low": 0.1})))
    assert isinstance(optimizer, DiscriminativeAdam) and optimizer.factors == {"low": 0.1}


def test_factors_fall_with_each_stage_and_the_head_has_its_own():
    model = build_classifier(make_tiny_backbone(), 3)
    unfreeze_top(model, 3)
    factors = learning_rate_factors(model, head_factor=10.0, stage_decay=0.5)
    by_layer = {path.split("/")[0]: factor for path, factor in factors.items()}
    assert by_layer == {
        "conv_0": 0.25, "depthwise_0": 0.25, "conv_1": 0.5, "depthwise_1": 0.5,
        "conv_2": 1.0, "depthwise_2": 1.0, "logits": 10.0,
    }  # fmt: skip
    assert set(factors) == {v.path for v in model.trainable_variables}


def test_the_rate_rises_in_a_line_and_falls_as_a_cosine():
    rate = warmup_cosine(1.0, num_steps=20, warmup=0.2)  # 4 steps up, 16 down
    values = [float(rate(k)) for k in range(21)]
    rising = [0.25 + 0.75 * k / 4 for k in range(4)]
    falling = [0.5 * (1 + math.cos(math.pi * k / 16)) for k in range(17)]
    assert values == pytest.approx(rising + falling, abs=1e-6)


def test_without_warm_up_the_first_step_is_the_longest():
    rate = warmup_cosine(0.1, num_steps=10, warmup=0.0)
    assert [float(rate(k)) for k in (0, 5, 10)] == pytest.approx([0.1, 0.05, 0.0])


def test_warm_up_only_reaches_the_peak():
    assert float(warmup_cosine(1.0, num_steps=4, warmup=1.0)(4)) == pytest.approx(1.0)


@pytest.mark.parametrize("peak", [0.0, -1.0, math.nan, math.inf])
def test_a_learning_rate_that_is_not_positive_is_refused(peak):
    with pytest.raises(ValueError, match=r"learning_rate must be a number in \(0, inf\)"):
        warmup_cosine(peak, 10, 0.1)
