"""Schedules that begin with small steps."""

from __future__ import annotations

import math
from typing import Any, Final, final

from keras import ops

from gradstab._serialization import register
from gradstab._validation import check_choice, check_float, check_int
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
from gradstab.schedules.shapes import ramp

_FORMS: Final = ("linear", "exponential")


@final
@register
class LinearWarmup(Schedule):
    r"""Raises the rate along a straight line to the start of `schedule`, then follows it.

    Runs often fail in their first steps: gradients are large, Adam's moments are estimated from a
    few batches, and normalization has not settled. Use a warm-up with Adam and similar optimizers,
    with large batches, with deep nets, and if the loss explodes within the first hundred steps.

    With $s$ the step, counted from 0, $W$ = `warmup_steps`, $\eta_0$ = `initial_learning_rate`
    and $\eta$ = `schedule`,

    $$\text{rate}(s) = \begin{cases}
    \eta_0 + (\eta(0) - \eta_0) \, \dfrac{s + 1}{W + 1} & s < W \\
    \eta(s - W) & s \ge W
    \end{cases}$$

    `schedule` starts at its step 0 when the warm-up is over, so no part of it is skipped: the rate
    reaches the peak $\eta(0)$ at step $W$ exactly. $\eta_0$ is the rate one step before the first.
    So with $\eta_0 = 0$ the first step, step 0, has the rate $\eta(0) / (W + 1)$ and is not wasted.
    $W = 0$ leaves `schedule` as it is.

    Args:
        schedule: The schedule that follows: a constant rate or any Keras schedule.
        warmup_steps: Number of steps below the peak. With Adam, 2 / (1 − beta_2) needs no tuning
            (Ma and Yarats): 2000 for Keras' default.
        initial_learning_rate: The rate from which the line starts. It may lie above the peak.

    Raises:
        TypeError: If an argument is of the wrong type, such as a function for `schedule`.
        ValueError: If a rate is negative, NaN or infinite, `schedule` is 0, or `warmup_steps`
            negative.

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
        self.schedule = check_rate("schedule", schedule, allow_zero=False)
        self.warmup_steps = check_int("warmup_steps", warmup_steps, minimum=0)
        self.initial_learning_rate = check_float(
            "initial_learning_rate", initial_learning_rate, include_minimum=True
        )

    def __call__(self, step: Any) -> Any:
        """Return the rate at `step`, counted from 0, as a float32 tensor of its shape."""
        step = whole_step(step)
        # During the warm-up the clamped step is 0, so this is the peak.
        scheduled = rate_at(self.schedule, ops.maximum(step - self.warmup_steps, 0))
        return ramp(step, self.warmup_steps, self.initial_learning_rate, scheduled)

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


@final
@register
class ExponentialWarmup(Schedule):
    r"""Multiplies `schedule` by a factor that approaches 1 exponentially.

    Use it if you do not want to choose the end of a linear warm-up, or if that end shows as a kink
    in the loss. `schedule` runs from the first step, since the warm-up has no last step.

    With $s$ the step, counted from 0, $\tau$ = `warmup_steps` and $\eta$ = `schedule`,

    $$\text{rate}(s) = \eta(s) \, \left(1 - e^{-(s + 1)/\tau}\right).$$

    After $\tau$ steps the factor is 0.63, after $3\tau$ 0.95, after $5\tau$ 0.993.

    Args:
        schedule: What is led up to: a constant rate or any Keras schedule.
        warmup_steps: Time constant in steps, a positive float. With Adam, 1 / (1 − beta_2) needs no
            tuning (Ma and Yarats), 1000 for Keras' default.

    Raises:
        TypeError: If an argument is of the wrong type, such as a function for `schedule`.
        ValueError: If the rate or `warmup_steps` is not positive and finite.

    Example:
        >>> from gradstab.schedules import ExponentialWarmup
        >>> schedule = ExponentialWarmup(1.0, warmup_steps=2)
        >>> [round(float(schedule(step)), 4) for step in (0, 1, 3, 9)]
        [0.3935, 0.6321, 0.8647, 0.9933]

    Reference: Ma and Yarats, 2021, On the adequacy of untuned warmup for adaptive optimization.
    """

    def __init__(self, schedule: Rate, warmup_steps: float = 1000.0) -> None:
        self.schedule = check_rate("schedule", schedule, allow_zero=False)
        self.warmup_steps = check_float("warmup_steps", warmup_steps)

    def __call__(self, step: Any) -> Any:
        """Return the rate at `step`, counted from 0, as a float32 tensor of its shape."""
        step = whole_step(step)
        return rate_at(self.schedule, step) * _approach(step, self.warmup_steps)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this schedule."""
        return {"schedule": serialize_rate(self.schedule), "warmup_steps": self.warmup_steps}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ExponentialWarmup:
        """Return the schedule that `get_config` described."""
        return cls(**{**config, "schedule": deserialize_rate(config["schedule"])})

    def __repr__(self) -> str:
        return (
            f"ExponentialWarmup({describe_rate(self.schedule)}, warmup_steps={self.warmup_steps})"
        )


@final
@register
class UntunedWarmup(Schedule):
    r"""A warm-up for Adam without parameters to tune: its length follows from `beta_2`.

    Use it with Adam, AdamW and similar optimizers, with the same `beta_2`. Adam divides by the root
    of a mean over about 1/(1 − β₂) squared gradients. In the first steps the mean is taken over few
    of them, and the steps are too long.

    With $s$ the step, counted from 0, and $\eta$ = `schedule`, the `"linear"` form is

    $$\text{rate}(s) = \begin{cases}
    \eta(0) \, (s + 1) \, \dfrac{1 - \beta_2}{2} & s < W \\
    \eta(s - W) & s \ge W
    \end{cases}
    \qquad W = \left\lceil \frac{2}{1 - \beta_2} \right\rceil - 1,$$

    so that the peak is the 2000th step for 0.999. `schedule` starts there, as with `LinearWarmup`.
    The `"exponential"` form is `ExponentialWarmup` with 1/(1 − β₂) steps:

    $$\text{rate}(s) = \eta(s) \, \left(1 - e^{-(1 - \beta_2)(s + 1)}\right).$$

    Args:
        schedule: What is led up to: a constant rate or any Keras schedule.
        beta_2: Adam's decay of the second moment, above 0 and below 1.
        form: `"linear"` or `"exponential"`, which are equally good.

    Raises:
        TypeError: If an argument is of the wrong type, such as a function for `schedule`.
        ValueError: If the rate is not positive and finite, `beta_2` not between 0 and 1, or the
            form another.

    Example:
        >>> from gradstab.schedules import UntunedWarmup
        >>> schedule = UntunedWarmup(1e-3, beta_2=0.999)
        >>> [round(float(schedule(step)), 7) for step in (0, 999, 1999, 2000)]
        [5e-07, 0.0005, 0.001, 0.001]

    Reference: Ma and Yarats, 2021, On the adequacy of untuned warmup for adaptive optimization.
    """

    def __init__(self, schedule: Rate, beta_2: float = 0.999, form: str = "linear") -> None:
        self.schedule = check_rate("schedule", schedule, allow_zero=False)
        self.beta_2 = check_float("beta_2", beta_2, maximum=1.0)
        if self.beta_2 == 1.0:
            raise ValueError(
                f"`beta_2` must be a float above 0 and below 1. Received: beta_2={beta_2!r}"
            )
        self.form: str = check_choice("form", form, _FORMS)
        # 2 / (1 − 0.9) is 20.000000000000004.
        self._steps_below = math.ceil(round(2 / (1 - self.beta_2), 6)) - 1

    def __call__(self, step: Any) -> Any:
        """Return the rate at `step`, counted from 0, as a float32 tensor of its shape."""
        step = whole_step(step)
        if self.form == "exponential":
            return rate_at(self.schedule, step) * _approach(step, 1 / (1 - self.beta_2))
        scheduled = rate_at(self.schedule, ops.maximum(step - self._steps_below, 0))
        count = ops.cast(ops.minimum(step, self._steps_below) + 1, "float32")
        factor = ops.minimum(count * ((1 - self.beta_2) / 2), 1.0)
        return scheduled * ops.where(step < self._steps_below, factor, 1.0)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this schedule."""
        return {
            "schedule": serialize_rate(self.schedule),
            "beta_2": self.beta_2,
            "form": self.form,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> UntunedWarmup:
        """Return the schedule that `get_config` described."""
        return cls(**{**config, "schedule": deserialize_rate(config["schedule"])})

    def __repr__(self) -> str:
        return (
            f"UntunedWarmup({describe_rate(self.schedule)}, beta_2={self.beta_2}, "
            f"form={self.form!r})"
        )


def _approach(step: Any, time_constant: float) -> Any:
    """Return 1 − exp(−(step + 1)/time_constant), without cancellation where it is small."""
    return -ops.expm1(ops.cast(step + 1, "float32") * (-1 / time_constant))
