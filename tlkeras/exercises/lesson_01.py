"""Checks of lesson 01: Why two phases?"""

from tlkeras.exercises import Exercise

EXERCISES = {
    "01.1": Exercise(
        "two numbers, the layers that one stage and three stages open",
        (2,),
        (
            (lambda a: a[0] < a[1], "one stage comes first and opens fewer layers."),
            (lambda a: a[1] < 60, "too many. Are batch-norm layers among them? `unfreeze_top` leaves them frozen."),
        ),
    ),
    "01.2": Exercise(
        "three accuracies: no epoch, 4 epochs and many epochs for the head first",
        (3,),
        (
            (lambda a: a[0] < a[1], "four epochs should already help. Was the head trained before `unfreeze_top`?"),
            (lambda a: a[2] > a[0], "a fully trained head should beat none."),
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
