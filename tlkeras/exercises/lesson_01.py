"""Checks of lesson 01: Why two phases?"""

from tlkeras.exercises import IN_SHARES, Exercise

EXERCISES = {
    "01.1": Exercise(
        "two numbers, the layers that one stage and three stages open",
        (2,),
        (
            (lambda a: a[0] < a[1], "one stage comes first and opens fewer layers."),
            (lambda a: a[1] < 60, "too many. Are batch-norm layers among them? `unfreeze_top` leaves them frozen."),
            (lambda a: tuple(a) == (4, 22), "count the names that `unfreeze_top` returns for one stage and three."),
        ),
    ),
    "01.2": Exercise(
        "three accuracies, shares: no epoch, 4 epochs and 40 epochs for the head first",
        (3,),
        (
            IN_SHARES,
            (lambda a: a[0] < a[1], "four epochs should already help. Was the head trained before `unfreeze_top`?"),
            (lambda a: a[1] < a[2], "a fully trained head should beat one of four epochs."),
        ),
    ),
    "01.3": Exercise(
        "one number, how many batch-norm statistics moved",
        (),
        (
            (lambda a: a > 0, "none moved. Is the whole base trainable, and was the audit made before `fit`?"),
            (lambda a: a == 104, "52 layers, each with a mean and a variance."),
        ),
    ),
}
