"""Checks of lesson 08: Which strategy for my data?"""

import numpy as np

from tlkeras.exercises import IN_PER_CENT, Exercise

EXERCISES = {
    "08.1": Exercise(
        "stages that the advisor unfreezes with 49 and with 50 pictures a class, two numbers",
        (2,),
        (
            (lambda a: a[0] == 0, "with 49 it unfreezes none. Are 49 left without the validation pictures?"),
            (lambda a: a[1] > 0, "with 50 it fine-tunes. Are 50 left without the validation pictures?"),
        ),
    ),
    "08.2": Exercise(
        "accuracies in per cent, (2, 3, 4): near and far; by seed; from 5, 10, 20 and 40 pictures a class",
        (2, 3, 4),
        (
            IN_PER_CENT,
            (
                lambda a: np.all(a[:, :, 3].mean(axis=1) > a[:, :, 0].mean(axis=1) + 3),
                "eight times the pictures gain too little: are other pictures judged by, the same for all four?",
            ),
        ),
    ),
    "08.3": Exercise(
        "accuracies in per cent, (3, 2): by seed; of the probe, and after fine-tuning from it at 0.03",
        (3, 2),
        (
            IN_PER_CENT,
            (
                lambda a: np.all(a[:, 1] < a[:, 0] - 30),
                "too little is lost. 0.03 throughout, and the last epoch judged, not the best?",
            ),
        ),
    ),
}
