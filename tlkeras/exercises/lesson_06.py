"""Checks of lesson 06: How small a learning rate?"""

import numpy as np

from tlkeras.exercises import IN_PER_CENT, Exercise


def in_order(answer: np.ndarray) -> bool:
    """Whether three rows of accuracies in per cent come before the distances."""
    return bool(answer[:3].min() > 15 > answer[3].max())


EXERCISES = {
    "06.1": Exercise(
        "two learning rates: the head's, that of the lowest open stage",
        (2,),
        (
            (lambda a: a[0] > a[1], "the head's rate comes first, and it is the larger one."),
            (lambda a: a[0] > 2e-3, "`learning_rate` is the top stage's; the head has `head_factor` times that."),
            (lambda a: np.isclose(a[0], 1e-2), "the head has ten times the rate of the top stage, no more, no less."),
            (
                lambda a: not np.isclose(a[1], 6.25e-5),
                "one decay too many: the top stage has the full rate, so the fourth from the top has three decays.",
            ),
            (lambda a: np.isclose(a[1], 1.25e-4), "of four open stages the lowest lies three below the top: 0.5**3."),
        ),
    ),
    "06.2": Exercise(
        "accuracies in per cent from the probe, (2, 3): one rate of 1e-3, then the head at ten times that; by seed",
        (2, 3),
        (
            IN_PER_CENT,
            (lambda a: a.min() > 70, "too low for a start at the probe. Is the head set to the probe before each run?"),
            (
                lambda a: abs(a[1].mean() - a[0].mean()) < 4,
                "these lie too far apart. Does the factor act on the head only, and are weights and optimizers reset?",
            ),
        ),
    ),
    "06.3": Exercise(
        "(4, 3): accuracies in per cent of the probe, of 1e-3 over 40 steps and of 1e-4 over 120, how far it moved",
        (4, 3),
        (
            (in_order, "in the order: probe, 1e-3, 1e-4, distance moved by 1e-4; a column a seed, all in per cent."),
            (lambda a: a[3].max() < 1, "too far for 1e-4. Is that the peak, falling to 0 once over all 120 steps?"),
            (lambda a: a[3].min() > 0.5, "moved no further than in 40 steps. Has the table 120 rows?"),
            (lambda a: a[2].mean() > a[0].mean() - 1, "behind the probe. The same judged pictures for both?"),
            (lambda a: a[2].mean() > a[1].mean() - 3, "it should catch up with 1e-3. Do both start at the probe?"),
        ),
    ),
}
