"""Numbers that somebody gives: whole or real and in their range, else an error that names the argument."""

from __future__ import annotations

import numbers
import operator
from typing import Any


def whole_number(name: str, value: Any, least: int | None = None) -> int:
    """Get a whole number of whatever kind (NumPy's, a tensor's) as Python's.

    Raises:
        ValueError: If it is none, such as 1e1, or below `least`; `name` is said.

    Examples:
    >>> whole_number("epochs", 1.5, 1)
    Traceback (most recent call last):
    ...
    ValueError: epochs must be a whole number of at least 1, got 1.5.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or (least is not None and number < least):
        bound = "" if least is None else f" of at least {least}"
        raise ValueError(f"{name} must be a whole number{bound}, got {value!r}.")
    return number


def real_number(name: str, value: Any, interval: str) -> float:
    """Get a number of whatever kind as Python's float, if it lies in an interval; NaN lies in none.

    Args:
        name: Of the argument, for the error.
        value: What was given for it.
        interval: As mathematicians write it: "(0, 1]" is above 0 and at most 1, "[0, inf)" 0 or more and finite.

    Raises:
        ValueError: If it is no number, such as "0.1", or lies outside; `name` and the interval are said.

    Examples:
    >>> real_number("dropout", 1, "[0, 1)")
    Traceback (most recent call last):
    ...
    ValueError: dropout must be a number in [0, 1), got 1.
    """
    low, high = map(float, interval[1:-1].split(","))
    if (
        not isinstance(value, numbers.Real)
        or not low <= value <= high
        or (value == low and interval[0] == "(")
        or (value == high and interval[-1] == ")")
    ):
        raise ValueError(f"{name} must be a number in {interval}, got {value!r}.")
    return float(value)
