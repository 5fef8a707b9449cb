"""Learning rates that differ from layer to layer, and the schedule over time."""

from __future__ import annotations

import math

import keras


@keras.saving.register_keras_serializable("tlkeras")
class DiscriminativeAdam(keras.optimizers.Adam):
    """Adam whose step on each variable is multiplied by that variable's factor.

    Multiplying gradients instead does nothing under Adam, which divides by their size. Here the learning rate
    inside the update is multiplied, so a factor of 0.1 makes a step a tenth as long.
    """

    def __init__(self, learning_rate=0.001, factors: dict[str, float] | None = None, **options):
        """Take factors by variable path; a variable that is not named has the factor 1."""
        super().__init__(learning_rate=learning_rate, **options)
        self.factors = dict(factors or {})

    def build(self, variables):
        """Make the slots, and the list of factors in the variables' order."""
        super().build(variables)
        self._factor_list = [float(self.factors.get(variable.path, 1.0)) for variable in variables]

    def update_step(self, gradient, variable, learning_rate):
        """Update one variable; `learning_rate` is the schedule's, before the factor."""
        factor = self._factor_list[self._get_variable_index(variable)]
        super().update_step(gradient, variable, learning_rate * factor)

    def get_config(self):
        """Get what `from_config` needs."""
        return {**super().get_config(), "factors": self.factors}


def learning_rate_factors(model: keras.Model, head_factor: float, stage_decay: float) -> dict[str, float]:
    """Get the factor of each trainable variable: `head_factor` for the head, `stage_decay**k` k stages below the top.

    Args:
        model: From `build_classifier`.
        head_factor: On the head's variables.
        stage_decay: For each stage further down.

    Returns:
        Factors by variable path.
    """
    transfer = model.transfer
    stage_of, stage = {}, 0
    for name in transfer.backbone_layers:
        stage_of[name] = stage
        if stage < len(transfer.stages) - 1 and name == transfer.stages[stage]:
            stage += 1
    top = len(transfer.stages) - 1
    factors = {}
    for layer in model.layers:
        depth = top - stage_of[layer.name] if layer.name in stage_of else None
        for variable in layer.trainable_variables:
            factors[variable.path] = head_factor if depth is None else stage_decay**depth
    return factors


def warmup_cosine(peak: float, num_steps: int, warmup: float) -> keras.optimizers.schedules.LearningRateSchedule:
    """Get a learning rate that rises to `peak` over the share `warmup` of the steps and falls to 0 as a cosine."""
    if not (math.isfinite(peak) and peak > 0):
        raise ValueError(f"learning_rate must be positive, got {peak!r}.")
    rising = int(warmup * num_steps)
    if rising < 1:
        return keras.optimizers.schedules.CosineDecay(peak, max(num_steps, 1))
    return keras.optimizers.schedules.CosineDecay(
        peak / rising, max(num_steps - rising, 1), warmup_target=peak, warmup_steps=rising
    )
