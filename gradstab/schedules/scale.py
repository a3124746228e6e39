"""A schedule times a factor, or counted in updates instead of micro-batches."""

from __future__ import annotations

from typing import Any, final

from keras import ops

from gradstab._serialization import register
from gradstab._validation import check_float, check_int
from gradstab.schedules.rates import (
    Rate,
    Schedule,
    check_rate,
    describe_rate,
    deserialize_rate,
    rate_at,
    serialize_rate,
    whole_step,
)


@final
@register
class Scale(Schedule):
    r"""Multiplies a schedule by a fixed factor, and counts updates under accumulation.

    Use the factor to give the parts of a `MultiOptimizer` the same schedule at different heights,
    or to follow a change of the batch size. Use `gradient_accumulation_steps` with an optimizer
    that has the same argument. Keras evaluates schedules at the number of *micro-batches*, so a
    warm-up of 500 steps would end after 500 micro-batches: 125 updates with windows of four. Inside
    `Scale` all steps are updates.

    With $s$ the step as the optimizer counts it, from 0, $f$ = `factor`, $k$ =
    `gradient_accumulation_steps` and $\eta$ = `schedule`,

    $$\text{rate}(s) = f \, \eta\left(\lfloor s / k \rfloor\right).$$

    All micro-batches of window $u$, the update that ends it included, have the rate $f \, \eta(u)$.

    Args:
        schedule: A constant rate or any Keras schedule.
        factor: Factor on the rate, a positive float.
        gradient_accumulation_steps: Micro-batches per update, as in the optimizer; 1 without
            accumulation.

    Raises:
        TypeError: If an argument is of the wrong type, such as a function for `schedule`.
        ValueError: If a number is not positive and finite.

    Example:
        >>> import keras
        >>> from gradstab.schedules import LinearDecay, LinearWarmup, Scale
        >>> updates = LinearWarmup(LinearDecay(0.4, decay_steps=4), warmup_steps=1)
        >>> rate = Scale(updates, gradient_accumulation_steps=2)
        >>> [round(float(rate(step)), 4) for step in range(8)]
        [0.2, 0.2, 0.4, 0.4, 0.3, 0.3, 0.2, 0.2]
        >>> optimizer = keras.optimizers.Adam(rate, gradient_accumulation_steps=2)
    """

    def __init__(
        self, schedule: Rate, factor: float = 1.0, gradient_accumulation_steps: int = 1
    ) -> None:
        self.schedule = check_rate("schedule", schedule, allow_zero=False)
        self.factor = check_float("factor", factor)
        self.gradient_accumulation_steps = check_int(
            "gradient_accumulation_steps", gradient_accumulation_steps
        )

    def __call__(self, step: Any) -> Any:
        """Return the rate at `step`, counted from 0, as a float32 tensor of its shape."""
        step = whole_step(step)
        if self.gradient_accumulation_steps > 1:
            step = ops.floor_divide(step, self.gradient_accumulation_steps)
        return rate_at(self.schedule, step) * self.factor

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this schedule."""
        return {
            "schedule": serialize_rate(self.schedule),
            "factor": self.factor,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Scale:
        """Return the schedule that `get_config` described."""
        return cls(**{**config, "schedule": deserialize_rate(config["schedule"])})

    def __repr__(self) -> str:
        return (
            f"Scale({describe_rate(self.schedule)}, factor={self.factor}, "
            f"gradient_accumulation_steps={self.gradient_accumulation_steps})"
        )
