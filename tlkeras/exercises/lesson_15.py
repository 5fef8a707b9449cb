"""Checks of lesson 15: Can a network learn without labels?"""

from tlkeras.exercises import IN_PER_CENT, Exercise

EXERCISES = {
    "15.1": Exercise(
        "two accuracies in per cent, after 30 and after 240 steps",
        (2,),
        (
            IN_PER_CENT,
            (lambda a: a[1] > a[0], "the longer training is not the better one. The same seed, weights made anew?"),
            (lambda a: a[1] > 50, "240 steps go further. Is `judge` given, and the last row taken?"),
        ),
    ),
    "15.2": Exercise(
        "three accuracies in per cent, with 2, 8 and 30 clusters",
        (3,),
        (
            IN_PER_CENT,
            (lambda a: a[2] > a[0], "two clusters should teach less than thirty. Is `num_clusters` handed over?"),
        ),
    ),
    "15.3": Exercise(
        "the loss after training, and the accuracy in per cent",
        (2,),
        (
            (lambda a: a[1] > 1.5, "the accuracy looks like a share of 1; hand over per cent."),
            (lambda a: a[1] > 35, "the accuracy is near chance. Is it the probe's, on materials, from the last row?"),
            (
                lambda a: a[0] < 1.38,
                "the loss is that of a guess. Does `batch` return the corner that it cut the window from?",
            ),
            (
                lambda a: a[0] > 0.3,
                "too easy. Is the window enlarged to the whole size, nothing else left in the picture?",
            ),
        ),
    ),
}
