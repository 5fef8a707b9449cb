"""Checks of lesson 17: Can others trust my model?"""

import numpy as np

from tlkeras.exercises import IN_SHARES, Exercise

EXERCISES = {
    "17.1": Exercise(
        "the share of ten flipped bytes that is refused, (3,): of weights, golden, README",
        (3,),
        (
            (lambda a: np.all((a >= 0) & (a <= 1)), "these are no shares of 1: divide the refused by the ten."),
            (
                lambda a: np.all(a == 1),
                "some got through. Is the copy a fresh one for each byte, and does `^= 1` really change it?",
            ),
        ),
    ),
    "17.2": Exercise(
        "accuracies of the old head as shares, (3, 5): by seed; 24, 11, 4, 2 and 1 bits",
        (3, 5),
        (
            IN_SHARES,
            (lambda a: a[:, 0].mean() > 0.5, "the full weights should do better: same cut for learning and judging?"),
            (lambda a: abs(np.mean(a[:, 0] - a[:, 1])) < 0.01, "11 bits cost next to nothing. Is the first column 24?"),
            (
                lambda a: np.mean(a[:, 0] - a[:, 4]) > 0.45,
                "1 bit should cost more. Was the head trained anew on the rounded features?",
            ),
        ),
    ),
    "17.3": Exercise(
        "the largest moves of your own golden pictures, in tolerances, (3,): by seed of the forgery",
        (3,),
        (
            (
                lambda a: np.all(a > 1),
                "some pass. Did the forger see these pictures, or are they those in the folder?",
            ),
            (lambda a: np.all(a > 10), "they move more than that: divide by the tolerance on the card."),
        ),
    ),
}
