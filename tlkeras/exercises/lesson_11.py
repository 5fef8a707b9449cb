"""Checks of lesson 11: What went wrong here?"""

import numpy as np

from tlkeras.exercises import IN_PER_CENT, Exercise

EXERCISES = {
    "11.1": Exercise(
        "accuracies in the service in per cent, (3,): by seed",
        (3,),
        (
            IN_PER_CENT,
            (
                lambda a: a.max() < 60,
                "hardly any harm. Divided before `backbone.model.predict`, the classifiers those of exhibit 1?",
            ),
            (lambda a: a.max() < 30, "too good for this bug. Was a classifier trained on the divided pictures?"),
        ),
    ),
    "11.2": Exercise(
        "points lost by swapping red and blue, (3,): by seed, the sound accuracy minus the swapped one",
        (3,),
        (
            (lambda a: not np.all(a == 0), "exactly no change: were the pictures swapped, and extracted again?"),
            (lambda a: a.mean() < 25, "too much lost. Swap the last axis, `[..., ::-1]`, of raw pictures in 0 to 255."),
            (lambda a: a.mean() < 6, "more than 6 points in the mean. The held-out rows of the same seed?"),
        ),
    ),
    "11.3": Exercise(
        "shares of 1, (3,): of the validation pictures of epoch 1, 2 and 3 that were trained on by then",
        (3,),
        (
            (lambda a: a.max() <= 1, "shares of 1, please: divide by the number of validation pictures."),
            (
                lambda a: a[0] > 0.3,
                "hardly any in epoch 1. Is `reshuffle_each_iteration` true? Go over `skip` first, then over `take`.",
            ),
            (
                lambda a: a[2] > a[0] + 0.1,
                "no growth. Collect the training pictures of all epochs so far, and take the validation ones anew.",
            ),
            (lambda a: np.allclose(a, [2 / 3, 8 / 9, 26 / 27], atol=0.1), "not 2/3, 8/9, 26/27: `take(100)` of 300?"),
        ),
    ),
}
