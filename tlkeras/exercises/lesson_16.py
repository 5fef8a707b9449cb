"""Checks of lesson 16: Which pretext helps which task?"""

import numpy as np

from tlkeras.exercises import IN_PER_CENT, Exercise

EXERCISES = {
    "16.1": Exercise(
        "losses of guessing: rotation, sound, SimCLR, three numbers",
        (3,),
        (
            (lambda a: abs(a[0] - np.log(4)) < 0.01, "rotation: four turns, each as likely. Natural logarithms?"),
            (lambda a: abs(a[1] - np.log(30)) < 0.01, "sound: 30 clusters of equal size."),
            (lambda a: abs(a[2] - np.log(64)) > 0.007, "SimCLR: a view is not compared with itself."),
            (lambda a: abs(a[2] - np.log(63)) < 0.007, "SimCLR: each of 32 pictures has two views. How many are left?"),
        ),
    ),
    "16.2": Exercise(
        "loss and accuracy on materials in per cent, (3, 2): by seed",
        (3, 2),
        (
            (lambda a: a[:, 1].mean() > 1.5, "the second column looks like shares of 1; hand over per cent."),
            (
                lambda a: a[:, 0].mean() < 1.1,
                "the loss is that of guessing. Is the ramp from top to bottom, on the pictures to train on?",
            ),
            (lambda a: a[:, 1].mean() > 38, "below random weights. Has the ramp been put on the judged pictures too?"),
            (lambda a: a[:, 1].mean() < 64, "too good for a shortcut: is this rotation, or labels?"),
        ),
    ),
    "16.3": Exercise(
        "accuracies in per cent on material and warmth, (3, 2): by seed",
        (3, 2),
        (
            IN_PER_CENT,
            (
                lambda a: a[:, 1].mean() > 78,
                "the warmth is not ahead of random weights. Has every pair of cluster and quarter its own number?",
            ),
            (
                lambda a: a[:, 0].mean() > 51,
                "the material is not ahead of random weights. Are the clusters in the order of the pictures?",
            ),
        ),
    ),
}
