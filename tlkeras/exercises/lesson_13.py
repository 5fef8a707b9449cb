"""Checks of lesson 13: Where does the time go?"""

import numpy as np

from tlkeras.exercises import Exercise

EXERCISES = {
    "13.1": Exercise(
        "how many times as fast the step becomes, a number",
        (),
        (
            (lambda a: a < 5, "5 is the limit with a network that takes no time at all."),
            (lambda a: abs(a - 1 / 0.24) < 0.05, "1 over the time left: 0.2 stays, 0.8 is divided by 20."),
        ),
    ),
    "13.2": Exercise(
        "different orders in three epochs: shuffled before the cache, after it, two numbers",
        (2,),
        (
            (lambda a: a[0] == 1, "before the cache: the cache keeps the order of the first epoch. Is it one dataset?"),
            (lambda a: a[1] == 3, "after the cache each epoch has its own order: `reshuffle_each_iteration`?"),
        ),
    ),
    "13.3": Exercise(
        "sides in pixels at which a JPEG of 1024 is decoded for 64, 128, 224 and 300 pixels, four numbers",
        (4,),
        (
            (
                lambda a: np.all(np.isin(a, 1024 / np.array([1, 2, 4, 8]))),
                "the scales of JPEG are 1, 1/2, 1/4 and 1/8.",
            ),
            (lambda a: np.all(a >= [64, 128, 224, 300]), "never smaller than asked for: an enlargement is no picture."),
            (lambda a: np.all(a == [128, 128, 256, 512]), "the smallest of the four that is not below the target."),
        ),
    ),
}
