"""Checks of lesson 00: Is everything ready?"""

import numpy as np

from tlkeras.exercises import IN_SHARES, Exercise

EXERCISES = {
    "00.1": Exercise(
        "one number, how many numbers a picture becomes",
        (),
        ((lambda a: a == 1280, "count the last axis of the features."),),
    ),
    "00.2": Exercise(
        "two mean gains in points: on fractals, on digits",
        (2,),
        (
            (lambda a: np.abs(a).max() > 1.5, "these look like shares of 1; hand over points."),
            (lambda a: a[0] < 94, "that looks like an accuracy: embedded minus random, in points."),
            (lambda a: a[1] > -5, "on digits the gain is not that bad. Embedded minus random, or the other way round?"),
            (lambda a: a[0] > a[1], "the gain on fractals comes first, and it should be the larger one."),
        ),
    ),
    "00.3": Exercise(
        "four mean accuracies, for 2, 5, 10 and 20 training pictures a class",
        (4,),
        (
            IN_SHARES,
            (
                lambda a: np.all(np.diff(a)[:2] > 0.02) and a[3] > a[2] - 0.01,
                "an early step does not rise, or the last falls. Means over three splits, training pictures left out?",
            ),
            (lambda a: 0.7 < a[0] < 0.91 < a[3], "two a class give about 0.85, twenty about 0.98. Held-out pictures?"),
        ),
    ),
}
