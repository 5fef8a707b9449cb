"""Checks of lesson 04: From scratch, or transferred?"""

import numpy as np

from tlkeras.exercises import IN_PER_CENT, Exercise

EXERCISES = {
    "04.1": Exercise(
        "probe accuracies in per cent, (2, 3): random weights, then pretrained; by seed",
        (2, 3),
        (
            IN_PER_CENT,
            (lambda a: np.all(a[0] < a[1]), "random weights come first, and lose. `weights=None`, 120 a class?"),
            (
                lambda a: np.all(a[1] - a[0] > 25),
                "the pretrained features should be further ahead. The fourth stage, `backbone.stages[3]`, of both?",
            ),
        ),
    ),
    "04.2": Exercise(
        "accuracies in per cent on clutter, (2, 3): transfer, then scratch; by seed",
        (2, 3),
        (
            IN_PER_CENT,
            (
                lambda a: a[0].mean() > a[1].mean() + 10,
                "transfer comes first, and should be ahead. Five classes, 120 a class, optimizer reset for each run?",
            ),
            (
                lambda a: a.max() < 70,
                "too good for digits on clutter. Judged by pictures that were not trained on?",
            ),
        ),
    ),
    "04.3": Exercise(
        "accuracies in per cent, near set, (2, 3): scratch after 160 steps, then transfer after 80; by seed",
        (2, 3),
        (
            IN_PER_CENT,
            (
                lambda a: a[0].max() < 50,
                "too good for scratch. Does it start from random weights, and is it judged by held-out pictures?",
            ),
            (lambda a: np.all(a[0] < a[1]), "scratch comes first, and stays behind. Near set, 120 a class?"),
        ),
    ),
}
