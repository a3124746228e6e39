"""The rate of an optimizer, scheduled or not: what it is, what it means, and setting it."""

from __future__ import annotations

from typing import Any

import keras

from gradstab._nesting import parts
from gradstab._variables import value_of
from gradstab.keras_hooks.optimizer_state import counter, learning_rate_source
from gradstab.optimizers.traits import traits_of


def current_rate(optimizer: Any) -> Any | None:
    """Return the rate of this step, or `None` where a `MultiOptimizer` has one for each part."""
    return None if hasattr(optimizer, "optimizers") else optimizer.learning_rate


def momentum(optimizer: Any) -> float | None:
    """Return the momentum of SGD, the largest of several; `None` if a part is no SGD."""
    found = [(traits_of(part).momentum, part) for part in parts(optimizer)]
    momenta = [None if read is None else read(part) for read, part in found]
    known = [each for each in momenta if each is not None]
    return max(known) if known and len(known) == len(momenta) else None


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
