import importlib
import pkgutil

import numpy as np
import pytest

import tlkeras.exercises
from tlkeras.exercises import Exercise, check

LESSONS = [module.name for module in pkgutil.iter_modules(tlkeras.exercises.__path__)]
EXERCISES = {
    name: exercise
    for lesson in LESSONS
    for name, exercise in importlib.import_module(f"tlkeras.exercises.{lesson}").EXERCISES.items()
}


def an_answer(exercise, value):
    return np.full([3 if side == -1 else side for side in exercise.shape], value)


@pytest.mark.parametrize("lesson", LESSONS)
def test_each_lesson_has_three_exercises(lesson):
    numbers = list(importlib.import_module(f"tlkeras.exercises.{lesson}").EXERCISES)
    assert numbers == [f"{lesson[-2:]}.{k}" for k in (1, 2, 3)]


@pytest.mark.parametrize("name", EXERCISES)
def test_an_answer_of_the_wrong_kind_is_told_what_is_wanted(name):
    exercise = EXERCISES[name]
    for answer in ("many", np.zeros((2, 2, 2, 2, 2)), [[1], [2, 3]]):
        assert f"Wanted: {exercise.wanted}." in exercise.hint(answer)
    assert "not finite" in exercise.hint(an_answer(exercise, np.nan))


@pytest.mark.parametrize("name", EXERCISES)
def test_no_exercise_takes_every_answer_and_each_hint_is_a_sentence(name):
    exercise = EXERCISES[name]
    assert any(exercise.hint(an_answer(exercise, value)) for value in (-1e6, -1.0, 0.0, 1.0, 1e6))
    for holds, hint in exercise.claims:
        assert callable(holds) and hint[-1] in ".?"


def test_the_first_claim_that_fails_gives_the_hint():
    exercise = Exercise("a number", (), ((lambda a: a > 0, "below 0."), (lambda a: a > 1, "below 1.")))
    assert [exercise.hint(value) for value in (-1, 0.5, 2)] == ["below 0.", "below 1.", None]


def test_check_prints_what_is_wanted_and_names_the_exercises_there_are(capsys):
    assert not check("07.2")
    assert "hand over accuracies as shares, (3, 7)" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"there are 07\.1, 07\.2, 07\.3"):
        check("07.9")
    with pytest.raises(ValueError, match="lessons 00, 01"):
        check("seven")
