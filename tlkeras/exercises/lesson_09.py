"""Checks of lesson 09: Which backbone?"""

import numpy as np

from tlkeras.exercises import IN_PER_CENT, Exercise

EXERCISES = {
    "09.1": Exercise(
        "how many times the multiplications at 64 pixels those at 128 are, a number",
        (),
        (
            (lambda a: a > 1, "128 pixels over 64, not the other way round."),
            (
                lambda a: abs(a - 1) > 0.01,
                "1 is the ratio of the weights. A weight is used once for each place of the layer's output.",
            ),
            (lambda a: abs(a - 2) > 0.2, "2 is the ratio of the sides; a map has a height and a width."),
            (lambda a: abs(a - 4) < 0.2, "height times width of each layer's output, times the size of its kernel?"),
        ),
    ),
    "09.2": Exercise(
        "rank correlations of source and near accuracy over the eight networks, one a seed, (3,)",
        (3,),
        (
            (lambda a: np.all(np.abs(a) <= 1), "a correlation lies from -1 to 1: accuracies were handed over?"),
            (
                lambda a: np.all(a > 0.6),
                "too low. The same judge for both sets, and `network.set_weights` before each network's features?",
            ),
        ),
    ),
    "09.3": Exercise(
        "near accuracies in per cent, (3, 2): by seed; first two stages random, last two stages random",
        (3, 2),
        (
            IN_PER_CENT,
            (lambda a: np.all(a[:, 1] > 30), "the last two too low: random weights only where the stage is 5 or 6?"),
            (
                lambda a: np.all(a[:, 0] < a[:, 1] - 10),
                "the first two cost too little: stages 0 and 1, batch norm included, and the columns in this order?",
            ),
        ),
    ),
}
