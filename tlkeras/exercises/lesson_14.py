"""Checks of lesson 14: Can you do your own project?"""

import numpy as np

from tlkeras.exercises import IN_SHARES, Exercise

EXERCISES = {
    "14.1": Exercise(
        "a number of pictures",
        (),
        (
            (lambda a: a > 100, "too few. The width is high minus low, at most 0.10: `wilson_interval(0.9 * n, n)`."),
            (lambda a: 120 <= a <= 170, "it lies between 120 and 170: the first such number when going up by tens."),
        ),
    ),
    "14.2": Exercise(
        "groups on two sides, (2, 3): with `groups` and without, by seed",
        (2, 3),
        (
            (lambda a: np.all(a[0] == 0), "with `groups` some are on two sides: one key a picture, five share a key?"),
            (
                lambda a: np.all(a[1] > 0),
                "without `groups` none is on two sides? Compare the keys of both as sets.",
            ),
        ),
    ),
    "14.3": Exercise(
        "accuracies as shares of 1, (3, 3): by seed, for 5, 10 and 20 pictures a class",
        (3, 3),
        (
            IN_SHARES,
            (lambda a: a.min() > 0.3, "near guessing. Do codes and labels have the same order?"),
            (lambda a: a.max() < 0.999, "all right? Judge on pictures that were not learnt from."),
            (
                lambda a: a.mean(axis=0)[2] > a.mean(axis=0)[0] + 0.03,
                "at 20 the mean is hardly above that at 5. Seeds down, 5, 10, 20 across?",
            ),
        ),
    ),
}
