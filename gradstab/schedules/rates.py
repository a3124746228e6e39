"""What every schedule that takes another needs: to check, evaluate, save and print a rate.

A rate is a number or a schedule of Keras. Steps stay integers as long as they are shifted, because
float32 cannot tell 1,000,000,001 from 1,000,000,000; rates are float32.
"""

from __future__ import annotations

import numbers
from typing import Any, TypeAlias

import keras
import numpy as np
from keras import ops

from gradstab._validation import check_float

Schedule = keras.optimizers.schedules.LearningRateSchedule
Rate: TypeAlias = Any  # a float or a `Schedule`, which is untyped


def check_rate(name: str, rate: Any, *, allow_zero: bool = True) -> Rate:
    """Return `rate` as a float or the schedule that it is, or raise.

    Args:
        name: The argument's name, for the message.
        rate: What the caller gave.
        allow_zero: Whether a constant rate may be 0, at which nothing moves.

    Raises:
        TypeError: If `rate` is neither a number nor a Keras schedule.
        ValueError: If `rate` is negative, NaN or infinite, or 0 where it must not be.
    """
    if isinstance(rate, Schedule):
        return rate
    if isinstance(rate, numbers.Real) and not isinstance(rate, bool):
        return check_float(name, rate, include_minimum=allow_zero)
    fix = ""
    if isinstance(rate, type) and issubclass(rate, Schedule):
        fix = f". Pass an instance, `{rate.__name__}(...)`, not the class."
    elif callable(rate):
        fix = ". Put a function of the step into the `__call__` of a subclass of it."
    kind = "non-negative" if allow_zero else "positive"
    raise TypeError(
        f"`{name}` must be a {kind} float or an instance of "
        f"keras.optimizers.schedules.LearningRateSchedule. Received: {name}={rate!r}{fix}"
    )


def check_end(name: str, rate: Any, top_name: str, top: float) -> float:
    """Return the rate at an end of a schedule as a float, from 0 to the highest one, or raise.

    Raises:
        TypeError: If `rate` is not a number.
        ValueError: If it is negative, NaN, infinite, or above `top`.
    """
    number = check_float(name, rate, include_minimum=True)
    if number > top:
        raise ValueError(
            f"`{name}` must be at most `{top_name}`. Received: {name}={rate!r}, {top_name}={top!r}"
        )
    return number


def whole_step(step: Any) -> Any:
    """Return `step` (a Python, NumPy or tensor integer, or an array of them) as an int64 tensor."""
    if isinstance(step, numbers.Integral):
        step = np.int64(step)  # else a Python int beyond int32 does not become a tensor
    # "int" is what Keras counts iterations in: int64 in TensorFlow.
    return ops.cast(step, "int")


def rate_at(rate: Rate, step: Any) -> Any:
    """Return the value of `rate` at the tensor `step`, in float32."""
    value = rate(step) if isinstance(rate, Schedule) else rate
    return ops.cast(value, "float32")


def serialize_rate(rate: Rate) -> Any:
    """Return `rate` as an entry of a config: schedules as Keras serializes them."""
    return keras.optimizers.schedules.serialize(rate) if isinstance(rate, Schedule) else rate


def deserialize_rate(config: Any) -> Rate:
    """Return the rate that `serialize_rate` was given."""
    return keras.optimizers.schedules.deserialize(config) if isinstance(config, dict) else config


def describe_rate(rate: Rate) -> str:
    """Return `rate` for a `repr`; Keras' own schedules, which have none, by their class name."""
    kind: Any = type(rate)
    return f"{kind.__name__}(...)" if kind.__repr__ is object.__repr__ else repr(rate)
