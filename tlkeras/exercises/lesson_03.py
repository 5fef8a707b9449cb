"""Checks of lesson 03: How far do we get without training the network?"""

import numpy as np

from tlkeras.exercises import IN_PER_CENT, Exercise

EXERCISES = {
    "03.1": Exercise(
        "two shares in per cent: nearest other picture of the same class, and knn",
        (2,),
        (
            IN_PER_CENT,
            (lambda a: a[0] < 99.5, "nearly all? A picture is its own nearest neighbour: leave it out."),
            (lambda a: a[0] > a[1], "among 499 pictures there should be a nearer one than among 200."),
        ),
    ),
    "03.2": Exercise(
        "how many points the class means are behind, (3,): for 3, 5 and 20 pictures a class",
        (3,),
        (
            (lambda a: np.abs(a).max() < 30, "these look like accuracies: softmax minus class means, in points."),
            (lambda a: a[2] > 0, "at 20 a class they are behind: softmax minus class means, in points."),
            (lambda a: a[0] < a[2], "the deficit should be smaller at 3 a class. Means over five splits?"),
        ),
    ),
    "03.3": Exercise(
        "half widths in points, (3, 2): SVM, neighbours, class means; naive and corrected",
        (3, 2),
        (
            (
                lambda a: np.allclose(a[:, 1] / a[:, 0], np.sqrt(8.5), rtol=0.02),
                "the ratio is not 2.9: (1/5 + 300/200) s² in place of s²/5, and the same t quantile for both.",
            ),
        ),
    ),
}
