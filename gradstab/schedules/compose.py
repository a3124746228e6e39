"""Schedules made of schedules: one after the other, or with a factor that can change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

import keras
import numpy as np
from keras import ops

from gradstab._serialization import register
from gradstab._validation import check_float, check_int
from gradstab._variables import held_number
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
class Join(Schedule):
    r"""Runs schedules one after the other, each from its own step 0.

    Use it for a run in phases: a plateau and then a decay, a decay that restarts, a fine-tuning
    phase at another rate. For a warm-up use `LinearWarmup`, which finds the peak by itself.

    With schedules $\eta_0, \dots, \eta_n$ and boundaries $b_1 < \dots < b_n$, and $b_0 = 0$,

    $$\text{rate}(s) = \eta_i(s - b_i), \qquad i = \max \{j : b_j \le s\}.$$

    So the step $b_i$ is the first of phase $i$. The rate may jump there.

    Args:
        schedules: The phases: constant rates or any Keras schedules, at least one.
        boundaries: The steps at which the second and each later phase begin: positive integers,
            strictly increasing, one fewer than `schedules`.

    Raises:
        TypeError: If an entry is of the wrong type, such as a function for a schedule.
        ValueError: If a rate is negative, NaN or infinite, or `boundaries` are out of order, not
            positive, or too many or too few.

    Example:
        >>> import keras
        >>> from gradstab.schedules import Join
        >>> decay = keras.optimizers.schedules.PolynomialDecay(0.4, 2, end_learning_rate=0.0)
        >>> schedule = Join([0.5, decay], boundaries=[2])
        >>> [round(float(schedule(step)), 4) for step in range(5)]
        [0.5, 0.5, 0.4, 0.2, 0.0]
    """

    def __init__(self, schedules: Sequence[Rate], boundaries: Sequence[int]) -> None:
        schedules = _check_list("schedules", schedules)
        boundaries = _check_list("boundaries", boundaries)
        if not schedules:
            raise ValueError("`schedules` must hold at least one schedule. Received: schedules=[]")
        self.schedules = [check_rate(f"schedules[{i}]", rate) for i, rate in enumerate(schedules)]
        self.boundaries = [check_int(f"boundaries[{i}]", b) for i, b in enumerate(boundaries)]
        if len(self.boundaries) != len(self.schedules) - 1:
            raise ValueError(
                "`boundaries` must be one fewer than `schedules`, the steps at which the second "
                f"and later ones begin. Received: {len(self.schedules)} schedules and "
                f"boundaries={self.boundaries}"
            )
        if any(later <= b for b, later in zip(self.boundaries, self.boundaries[1:], strict=False)):
            raise ValueError(
                "`boundaries` must be strictly increasing: steps of the whole run, not lengths of "
                f"phases. Received: boundaries={self.boundaries}"
            )

    def __call__(self, step: Any) -> Any:
        """Return the rate at `step`, counted from 0, as a float32 tensor of its shape."""
        step = whole_step(step)
        rate = rate_at(self.schedules[0], step)
        for boundary, schedule in zip(self.boundaries, self.schedules[1:], strict=True):
            later = rate_at(schedule, ops.maximum(step - boundary, 0))
            rate = ops.where(step >= boundary, later, rate)
        return rate

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this schedule."""
        return {
            "schedules": [serialize_rate(schedule) for schedule in self.schedules],
            "boundaries": list(self.boundaries),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Join:
        """Return the schedule that `get_config` described."""
        return cls([deserialize_rate(rate) for rate in config["schedules"]], config["boundaries"])

    def __repr__(self) -> str:
        phases = ", ".join(map(describe_rate, self.schedules))
        return f"Join([{phases}], boundaries={self.boundaries})"


@final
@register
class Adjustable(Schedule):
    r"""Makes a scheduled rate adjustable while training runs, by callbacks or by hand.

    Keras refuses to set the learning rate of an optimizer that has a schedule, so that
    `ReduceLROnPlateau` and `LearningRateScheduler` raise a `TypeError` there. `Adjustable`
    multiplies the schedule by a factor in a variable, which a compiled step reads each time.
    Setting the rate of a `StabilizedOptimizer` chooses the factor so that the current step has the
    requested rate; from there on the schedule continues, scaled. A plain Keras optimizer still
    refuses; there, set `schedule.factor = 0.1`.

    Make it the outermost schedule: an `Adjustable` inside another schedule works through its own
    `factor`, but an optimizer's `learning_rate` can't be set through it.

    The factor is part of the config, so a saved `.keras` model has it. Weights files and
    checkpoints hold it if the optimizer is a `StabilizedOptimizer`, which saves `factor_variable`
    with its state.

    Args:
        schedule: A constant rate or any Keras schedule, but not another `Adjustable`.
        factor: The factor to start with, non-negative and finite. 0 stops all movement.

    Attributes:
        factor: The factor as a float; an assignment takes effect at the next step.
        factor_variable: The scalar float32 `keras.Variable` that holds it.

    Raises:
        TypeError: If an argument is of the wrong type, such as a function for `schedule`.
        ValueError: If `schedule` is an `Adjustable`, or a number is negative, NaN or infinite.

    Example:
        >>> import keras
        >>> from gradstab.schedules import Adjustable
        >>> decay = keras.optimizers.schedules.PolynomialDecay(0.4, 4, end_learning_rate=0.0)
        >>> schedule = Adjustable(decay)
        >>> schedule.set_rate(0.15, step=1)  # where the decay has 0.3
        >>> round(schedule.factor, 4)
        0.5
        >>> [round(float(schedule(step)), 4) for step in (1, 2, 3)]
        [0.15, 0.1, 0.05]
    """

    def __init__(self, schedule: Rate, factor: float = 1.0) -> None:
        if isinstance(schedule, Adjustable):
            raise ValueError(
                f"`schedule` must not be adjustable already. Received: schedule={schedule!r}. "
                "Use it as it is, or wrap its `schedule`."
            )
        self.schedule = check_rate("schedule", schedule)
        self._factor = check_float("factor", factor, include_minimum=True)
        self.factor_variable = keras.Variable(
            self._factor,
            dtype="float32",
            trainable=False,
            aggregation="only_first_replica",
            name="learning_rate_factor",
        )

    @property
    def factor(self) -> float:
        """The factor on the schedule's rate."""
        return held_number(self.factor_variable, self._factor)

    @factor.setter
    def factor(self, factor: float) -> None:
        self._factor = check_float("factor", factor, include_minimum=True)
        self.factor_variable.assign(self._factor)

    def set_rate(self, rate: float, step: Any) -> None:
        """Set the factor so that the rate at `step` becomes `rate`.

        Args:
            rate: The learning rate to have, non-negative and finite.
            step: The step at which to have it, as a rule the optimizer's `iterations`.

        Raises:
            TypeError: If `rate` is not a number.
            ValueError: If `rate` is negative, NaN or infinite, or if no factor can give it since
                the schedule has reached 0.
        """
        rate = check_float("rate", np.asarray(rate).item(), include_minimum=True)
        scheduled = float(rate_at(self.schedule, whole_step(step)))
        if rate == scheduled == 0.0:
            return
        factor = rate / scheduled if scheduled else math.inf
        if not 0.0 <= factor <= float(np.finfo(np.float32).max):
            raise ValueError(
                f"`rate` can't be {rate:g} at step {int(step)}, where the schedule has "
                f"{scheduled:g}: no factor makes the one of the other. Let the schedule end above "
                "0, e.g. CosineDecay(..., alpha=0.01)"
            )
        self.factor = factor

    def __call__(self, step: Any) -> Any:
        """Return the rate at `step`, counted from 0, as a float32 tensor of its shape."""
        return ops.multiply(rate_at(self.schedule, whole_step(step)), self.factor_variable)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this schedule, with the factor of the moment."""
        return {"schedule": serialize_rate(self.schedule), "factor": self.factor}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Adjustable:
        """Return the schedule that `get_config` described."""
        return cls(**{**config, "schedule": deserialize_rate(config["schedule"])})

    def __repr__(self) -> str:
        return f"Adjustable({describe_rate(self.schedule)}, factor={self.factor})"


def _check_list(name: str, value: Any) -> list[Any]:
    is_list = isinstance(value, Sequence) or (isinstance(value, np.ndarray) and value.ndim > 0)
    if isinstance(value, str | bytes) or not is_list:
        raise TypeError(f"`{name}` must be a list. Received: {name}={value!r}")
    return list(value)
