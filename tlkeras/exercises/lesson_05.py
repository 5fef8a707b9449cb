"""Checks of lesson 05: How many layers should we unfreeze?"""

from tlkeras.exercises import IN_PER_CENT, Exercise

EXERCISES = {
    "05.1": Exercise(
        "two shares in per cent for one stage: weights that train, activations above the cut",
        (2,),
        (
            IN_PER_CENT,
            (lambda a: a[0] < 99.5, "all weights train? Count `trainable_variables`, after `unfreeze_top`."),
            (lambda a: 45 < a[0] < 55, "about half of all weights lie in the last stage. Is one stage open?"),
            (lambda a: 4 < a[1] < 10, "the last stage holds few activations: its maps are small. All above the cut?"),
        ),
    ),
    "05.2": Exercise(
        "accuracies in per cent on clutter, (3, 3): no stage, one, seven; by seed",
        (3, 3),
        (
            IN_PER_CENT,
            (lambda a: a.max() < 60, "too good for ten pictures a class. Judged by pictures that were not trained on?"),
            (lambda a: a[0].mean() < 38, "the probe is too good for clutter. Ten pictures a class, and no more?"),
            (
                lambda a: abs(a[1:].mean(axis=1) - a[0].mean()).max() < 10,
                "some depth is far from the probe. Is the head set to the probe before each run?",
            ),
        ),
    ),
    "05.3": Exercise(
        "accuracies in per cent, near, few, seven stages, (2, 3): peak 1e-3, then 1e-4; by seed",
        (2, 3),
        (
            IN_PER_CENT,
            (
                lambda a: a[1].min() > 62,
                "too low for the low rate: it should not fall far below the probe. Was the head set to the probe?",
            ),
            (
                lambda a: abs(a[1].mean() - a[0].mean()) < 7,
                "the two rates should not lie that far apart. Head set to the probe, optimizer and weights put back?",
            ),
        ),
    ),
}
