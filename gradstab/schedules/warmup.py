"""Schedules that begin with small steps."""

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
class LinearWarmup(Schedule):
    r"""Raises the rate along a straight line to where `schedule` begins, then follows it.

    The first steps are the ones that break a run: gradients are large, Adam's moments rest on a
    handful of batches, and normalization has not settled. Use a warm-up with Adam and its kin, with
    large batches, with deep nets, and whenever the loss explodes within the first hundred steps.

    With $s$ the step, counted from 0, $W$ = `warmup_steps`, $\eta_0$ = `initial_learning_rate`
    and $\eta$ = `schedule`,

    $$\text{rate}(s) = \begin{cases}
    \eta_0 + (\eta(0) - \eta_0) \, \dfrac{s + 1}{W + 1} & s < W \\
    \eta(s - W) & s \ge W
    \end{cases}$$

    The clock of `schedule` starts at 0 when the warm-up is over, so nothing of it is cut off:
    the rate reaches the peak $\eta(0)$ at step $W$ exactly, on the same straight line. $\eta_0$
    is the rate one step before the first, so that with $\eta_0 = 0$ no step is taken in vain:
    the first, at step 0, has the rate $\eta(0) / (W + 1)$. $W = 0$ leaves `schedule` as it is.

    Args:
        schedule: What follows: a constant rate or any Keras schedule.
        warmup_steps: Number of steps below the peak. With Adam, 2 / (1 − beta_2) is a value that
            needs no tuning (Ma and Yarats), 2000 for Keras' default.
        initial_learning_rate: The rate from which the line starts. It may lie above the peak.

    Raises:
        TypeError: If an argument is of the wrong type, such as a function for `schedule`.
        ValueError: If a rate is negative, NaN or infinite, or `warmup_steps` negative.

    Example:
        >>> from gradstab.schedules import LinearWarmup
        >>> schedule = LinearWarmup(0.4, warmup_steps=3)
        >>> [round(float(schedule(step)), 4) for step in range(5)]
        [0.1, 0.2, 0.3, 0.4, 0.4]

    References:
        - Goyal et al., 2017, Accurate, large minibatch SGD: training ImageNet in 1 hour.
        - Ma and Yarats, 2021, On the adequacy of untuned warmup for adaptive optimization.
    """

    def __init__(
        self, schedule: Rate, warmup_steps: int, initial_learning_rate: float = 0.0
    ) -> None:
        self.schedule = check_rate("schedule", schedule)
        self.warmup_steps = check_int("warmup_steps", warmup_steps, minimum=0)
        self.initial_learning_rate = check_float(
            "initial_learning_rate", initial_learning_rate, include_minimum=True
        )

    def __call__(self, step: Any) -> Any:
        """Return the rate at `step`, counted from 0, as a float32 tensor of its shape."""
        step = whole_step(step)
        # During the warm-up the clamped step is 0, so this is the peak.
        scheduled = rate_at(self.schedule, ops.maximum(step - self.warmup_steps, 0))
        done = ops.cast(ops.minimum(step, self.warmup_steps) + 1, "float32")
        left = ops.cast(ops.maximum(self.warmup_steps - step, 0), "float32")
        total = float(self.warmup_steps + 1)
        return scheduled * (done / total) + self.initial_learning_rate * (left / total)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this schedule."""
        return {
            "schedule": serialize_rate(self.schedule),
            "warmup_steps": self.warmup_steps,
            "initial_learning_rate": self.initial_learning_rate,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LinearWarmup:
        """Return the schedule that `get_config` described."""
        return cls(**{**config, "schedule": deserialize_rate(config["schedule"])})

    def __repr__(self) -> str:
        return (
            f"LinearWarmup({describe_rate(self.schedule)}, warmup_steps={self.warmup_steps}, "
            f"initial_learning_rate={self.initial_learning_rate})"
        )
