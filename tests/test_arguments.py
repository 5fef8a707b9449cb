"""Numbers of any kind are taken, what is none or lies outside is refused by name."""

import numpy as np
import pytest

from tlkeras.arguments import real_number, whole_number


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3)])
def test_whole_numbers_of_any_kind_become_pythons(value):
    assert type(whole_number("steps", value, 1)) is int
    assert whole_number("steps", value, 3) == 3


@pytest.mark.parametrize("value", [3.0, "3", None, np.float32(3), [3], 2])
def test_what_is_no_whole_number_or_too_small_is_refused(value):
    with pytest.raises(ValueError, match="^steps must be a whole number of at least 3, got "):
        whole_number("steps", value, 3)


def test_without_a_least_any_whole_number_will_do():
    assert whole_number("seed", -7) == -7
    with pytest.raises(ValueError, match=r"^seed must be a whole number, got 0.5\.$"):
        whole_number("seed", 0.5)


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("[0, 1)", [0, 0.5, np.float32(0.999)], [-1e-9, 1, 2]),
        ("(0, 1]", [1e-9, 1, np.int64(1)], [0, -0.0, 1.001]),
        ("(0, inf)", [1e-300, 1e300], [0, -1, float("inf"), float("nan")]),
        ("[0, inf)", [0, 7], [-1, float("inf")]),
        ("(0, inf]", [0.5, float("inf")], [0, float("nan")]),
    ],
)
def test_an_interval_holds_its_ends_as_written(interval, inside, outside):
    for value in inside:
        assert real_number("share", value, interval) == float(value)
        assert type(real_number("share", value, interval)) is float
    for value in [*outside, "0.5", None, [0.5]]:
        with pytest.raises(ValueError) as caught:
            real_number("share", value, interval)
        assert str(caught.value) == f"share must be a number in {interval}, got {value!r}."
