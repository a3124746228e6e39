"""The rate of an optimizer, scheduled or not: what it is, what it means, and setting it."""

from __future__ import annotations

from typing import Any

import keras

from gradstab.functional._backend import value_of
from gradstab.optimizers.inner import counter, parts


def learning_rate_source(optimizer: Any) -> Any:
    """Return the schedule, callable or variable that an optimizer's rate comes from.

    Keras shows the value of a schedule and not the schedule, so its private attribute is read.

    Raises:
        AttributeError: If this version of Keras keeps it elsewhere.
    """
    return optimizer._learning_rate


def current_rate(optimizer: Any) -> Any | None:
    """Return the rate of this step, or `None` where a `MultiOptimizer` has one for each part."""
    return None if hasattr(optimizer, "optimizers") else optimizer.learning_rate


def momentum(optimizer: Any) -> float | None:
    """Return the momentum of SGD, the largest of several; `None` if a part is no Keras SGD."""
    found = parts(optimizer)
    if not all(isinstance(part, keras.optimizers.SGD) for part in found):
        return None
    return max(float(part.momentum) for part in found)


def rate_and_momentum(optimizer: Any) -> tuple[float | None, float | None]:
    """Return the rate as it is now, and the momentum of SGD; each `None` where there is none."""
    rate = current_rate(optimizer)
    return None if rate is None else float(value_of(rate)), momentum(optimizer)


def adjustable_parts(optimizer: Any) -> list[Any]:
    """Return every `schedules.Adjustable` in an optimizer's schedule once, the outermost first."""
    found: list[Any] = []
    pending = [learning_rate_source(part) for part in parts(optimizer)]
    while pending:
        schedule = pending.pop(0)
        if hasattr(schedule, "factor_variable") and not any(s is schedule for s in found):
            found.append(schedule)
        if isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
            pending.append(getattr(schedule, "schedule", None))
            pending.extend(getattr(schedule, "schedules", None) or [])
    return found


def set_learning_rate(optimizer: Any, value: Any) -> None:
    """Set the rate: the number itself, or the factor of a schedule that is `Adjustable`.

    Raises:
        TypeError: If the rate comes from a schedule that can't be cut.
    """
    source = learning_rate_source(optimizer)
    is_schedule = isinstance(source, keras.optimizers.schedules.LearningRateSchedule)
    if not is_schedule or callable(value):
        optimizer.learning_rate = value
    elif hasattr(source, "set_rate"):
        # What Keras asks the schedule with: micro-batches, where `iterations` counts windows.
        source.set_rate(value, counter(optimizer))
    else:
        raise TypeError(
            "This optimizer was created with a `LearningRateSchedule`: its learning rate comes "
            f"from a schedule and can't be set. Received: learning_rate={value!r} on a "
            f"{type(optimizer).__name__} with {type(source).__name__}. Give the optimizer "
            "`gradstab.schedules.Adjustable(schedule)`, which callbacks can cut"
        )
