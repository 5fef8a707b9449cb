"""Checks of lesson 12: Does it work far from home: X-rays?"""

import numpy as np

from tlkeras.exercises import IN_SHARES, Exercise

EXERCISES = {
    "12.1": Exercise(
        "AUC, (5, 2): by seed; over pictures, over people",
        (5, 2),
        (
            (lambda a: np.all((a > 0) & (a <= 1)), "an AUC lies from 0 to 1."),
            (lambda a: np.any(a[:, 0] != a[:, 1]), "both columns are the same: one mean score a person in the second?"),
            (
                lambda a: a[:, 1].mean() >= a[:, 0].mean() - 0.01,
                "people come out lower: only people who judge, and each one's label beside their own mean?",
            ),
        ),
    ),
    "12.2": Exercise(
        "sensitivity, specificity and the share of sick people at which half of the alarms are right, three shares",
        (3,),
        (
            IN_SHARES,
            (
                lambda a: abs(a[2] * a[0] - (1 - a[2]) * (1 - a[1])) < 0.005,
                "not half: right alarms are share * sensitivity, wrong ones (1 - share) * (1 - specificity).",
            ),
            (
                lambda a: np.abs(a[:2] - [0.91, 0.95]).max() < 0.02,
                "the lesson's means over five seeds are those of `kept` and `left in peace`.",
            ),
        ),
    ),
    "12.3": Exercise(
        "shares of the sick found at 0.5, (3, 2): by seed; with the marks, without them, learnt with them both times",
        (3, 2),
        (
            IN_SHARES,
            (lambda a: np.all(a[:, 0] > 0.9), "with marks too low: is the mark in the sick pictures of all parts?"),
            (
                lambda a: np.all(a[:, 1] < 0.5),
                "without marks too good: learn from the marked pictures, judge the others, and count the sick, no AUC.",
            ),
        ),
    ),
}
