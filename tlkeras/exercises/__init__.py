"""The checks of the course's exercises: a hint, not only right or wrong. Each lesson has its module of claims."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Exercise:
    """What an answer must look like and what must hold of it.

    Attributes:
        wanted: What to hand over, in words.
        shape: Of the answer as an array; () is a single number, -1 stands for any length.
        claims: What must hold of the answer, in the order in which to look; each with the hint for when it does not.
    """

    wanted: str
    shape: tuple[int, ...]
    claims: tuple[tuple[Callable[[np.ndarray], Any], str], ...]

    def hint(self, answer: Any) -> str | None:
        """What is wrong with an answer, in one line; None if nothing is."""
        try:
            given = np.asarray(answer, dtype=float)
        except (TypeError, ValueError):
            return f"that is {type(answer).__name__}, not numbers. Wanted: {self.wanted}."
        if given.ndim != len(self.shape) or any(k not in (-1, n) for k, n in zip(self.shape, given.shape, strict=True)):
            return f"the shape is {given.shape}. Wanted: {self.wanted}."
        if not np.isfinite(given).all():
            return "some of these are not finite numbers. Was something divided by 0, or left empty?"
        return next((hint for holds, hint in self.claims if not holds(given)), None)


def check(exercise: str, answer: Any = None) -> bool:
    """Check the answer to an exercise of the course and print a hint where it is not right yet.

    The claims are those of the embedded world. On other pictures a right answer may fail them, as a claim may.

    Args:
        exercise: Lesson and number, such as "07.2".
        answer: A number or an array of numbers. Without one it prints what is wanted.

    Returns:
        Whether the answer is right.

    Raises:
        ValueError: There is no such exercise; those of the lesson are named.

    Examples:
        >>> check("00.1", 1024)
        00.1: not yet. Count the last axis of the features.
        False
        >>> check("00.1", 1280)
        00.1: right.
        True
    """
    lesson = f"lesson_{str(exercise)[:2]}"
    lessons = [module.name for module in pkgutil.iter_modules(__path__)]
    known = importlib.import_module(f"{__name__}.{lesson}").EXERCISES if lesson in lessons else {}
    if exercise not in known:
        numbers = ", ".join(known) or "lessons " + ", ".join(name[-2:] for name in lessons)
        raise ValueError(f"There is no exercise {exercise!r}; there are {numbers}.")
    if answer is None:
        print(f"{exercise}: hand over {known[exercise].wanted}.")
        return False
    hint = known[exercise].hint(answer)
    print(f"{exercise}: right." if hint is None else f"{exercise}: not yet. {hint[0].upper()}{hint[1:]}")
    return hint is None


def in_per_cent(values: np.ndarray) -> bool:
    """Whether accuracies are in per cent, not shares of 1."""
    return bool(values.max() > 1.5)


IN_PER_CENT = (in_per_cent, "these look like shares of 1; hand over per cent.")
IN_SHARES = (lambda values: not in_per_cent(values), "these look like per cent; hand over shares of 1.")
