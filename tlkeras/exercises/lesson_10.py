"""Checks of lesson 10: Can I trust the number?"""

import numpy as np

from tlkeras.exercises import Exercise

EXERCISES = {
    "10.1": Exercise(
        "two numbers of pictures: for an interval of at most 10 points around 90 %, and of at most 5",
        (2,),
        (
            (lambda a: a[0] < a[1], "a narrower interval takes more pictures: first 10 points, then 5."),
            (lambda a: a[0] > 100, "too few. The width is high minus low, not the distance to the value."),
            (lambda a: 120 <= a[0] <= 170, "for 10 points it is between 120 and 170: `wilson_interval(0.9 * n, n)`?"),
            (lambda a: 3.3 < a[1] / a[0] < 4.7, "the second should be about four times the first."),
        ),
    ),
    "10.2": Exercise(
        "points too good in the mean of three seeds, (2,): with brighter copies, and with JPEGs of quality 60",
        (2,),
        (
            (lambda a: np.abs(a).max() > 1, "these look like shares of 1; hand over points."),
            (lambda a: np.abs(a).max() < 50, "these look like accuracies: validation minus outside."),
            (lambda a: a[0] > 4, "brighter copies flatter by more. `near_duplicates=False`, validation minus outside?"),
            (lambda a: a[1] < a[0], "JPEGs should flatter less: is the quality 60, and does the copy go through it?"),
        ),
    ),
    "10.3": Exercise(
        "points that the best is ahead of the mean, (4,): of 2, 5, 10 and 50 equally good classifiers",
        (4,),
        (
            (lambda a: a.max() > 1, "these look like shares of 1; hand over points."),
            (lambda a: np.all(np.diff(a) > 0), "it should rise at every step. The maximum over classifiers, a repeat?"),
            (
                lambda a: 6.5 < a[2] < 9.5,
                "about 8 points for ten: 60 pictures, right with probability 0.8, best minus mean.",
            ),
        ),
    ),
}
