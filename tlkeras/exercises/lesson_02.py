"""Checks of lesson 02: What does a pretrained network know?"""

import numpy as np

from tlkeras.exercises import IN_PER_CENT, Exercise

EXERCISES = {
    "02.1": Exercise(
        "by how many points the pretrained features are ahead, (2, 3): 4 and 12 cells, by seed",
        (2, 3),
        (
            (lambda a: a.min() > 20, "somewhere they are less than 20 points ahead. In points, and near set?"),
            (lambda a: a.max() < 50, "that looks like an accuracy: pretrained minus HOG, in points."),
        ),
    ),
    "02.2": Exercise(
        "accuracies in per cent, (3, 3): pretrained, HOG and both, by seed",
        (3, 3),
        (
            IN_PER_CENT,
            (lambda a: np.all(a[2] > a[0]), "both together should beat the pretrained features alone."),
            (lambda a: np.mean(a[2] - a[1]) < 6, "both together are too far ahead of HOG. Is it the far set?"),
        ),
    ),
    "02.3": Exercise(
        "accuracies in per cent, (3, 3): HOG, HOG without places and pretrained, by seed",
        (3, 3),
        (
            IN_PER_CENT,
            (
                lambda a: np.all(a[1] < a[0]),
                "without places it should fall. 7 x 7 blocks of 36 numbers: which axis is averaged?",
            ),
            (
                lambda a: np.mean(a[0] - a[1]) > np.mean(a[0] - a[2]) / 2,
                "less than half of HOG's lead is gone. Is it the far set?",
            ),
        ),
    ),
}
