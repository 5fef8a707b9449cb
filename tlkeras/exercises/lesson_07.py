"""Checks of lesson 07: Where should the classifier sit?"""

import numpy as np

from tlkeras.exercises import IN_SHARES, Exercise

EXERCISES = {
    "07.1": Exercise(
        "accuracies, (3, 7): by seed, by stage",
        (3, 7),
        (
            (
                lambda a: np.all(a.argmax(axis=1) == 6),
                "in some seed an earlier stage is the best: `kind='knn'`, near set?",
            ),
            (
                lambda a: np.all(a[:, 2] < 0.4 * a[:, 6]),
                "stage 3 is too good for nearest neighbours: `kind='knn'`?",
            ),
        ),
    ),
    "07.2": Exercise(
        "accuracies as shares, (3, 7): by seed, by stage, with random weights",
        (3, 7),
        (IN_SHARES, (lambda a: a.max() < 0.25, "too good for random weights. `weights=None`, anew for each seed?")),
    ),
    "07.3": Exercise(
        "accuracies, (3, 7): by seed; stages 1 to 6 in fields, then the averaged last one",
        (3, 7),
        (
            (
                lambda a: np.all(a[:, :6].max(axis=1) > a[:, 6]),
                "the last one is ahead. 3 x 3 fields for the early stages, one for the last?",
            ),
        ),
    ),
}
