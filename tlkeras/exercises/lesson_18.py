"""Checks of lesson 18: Can it say where things are?"""

import numpy as np

from tlkeras.exercises import IN_PER_CENT, Exercise

EXERCISES = {
    "18.1": Exercise(
        "the overlap, one number from 0 to 1",
        (),
        (
            (lambda a: abs(a - 2 / 3) > 0.01, "that is the share of one box: divide by the area that both cover."),
            (lambda a: abs(a - 0.5) < 0.01, "they share 2/3 of a width. How much do they cover together?"),
        ),
    ),
    "18.2": Exercise(
        "AP in per cent, (3, 2): boxes 1.1, 1.2 and 1.4 times as large; at overlaps 0.5 and 0.75",
        (3, 2),
        (
            IN_PER_CENT,
            (lambda a: np.all(a[:, 0] > 99), "at 0.5 all are found. Both sides by the factor?"),
            (lambda a: a[0, 1] > 99, "1.1 times as large the overlap is 0.83, enough at 0.75."),
            (lambda a: np.all(a[1:, 1] < 1), "1 / 1.2² is below 0.75. Did both sides grow?"),
        ),
    ),
    "18.3": Exercise(
        "AP in per cent, (2, 3): head on 6 x 6 and on 3 x 3 places, by seed",
        (2, 3),
        (
            IN_PER_CENT,
            (lambda a: a[0].min() > 50, "on 6 x 6 places it finds more: 40 epochs at 1e-2, on pretrained weights?"),
            (lambda a: a[1].min() > 5, "on 3 x 3 places it finds more: pretrained weights, and maps for this model?"),
            (
                lambda a: np.all(a[0] > a[1] + 10),
                "on 3 x 3 places AP is more than 10 points lower. Is the second row `stage=backbone.stages[-1]`?",
            ),
        ),
    ),
}
