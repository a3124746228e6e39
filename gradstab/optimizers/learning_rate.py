"""The rate of an optimizer, scheduled or not: what it is, what it means, and setting it."""

from __future__ import annotations

from typing import Any

import keras

from gradstab.optimizers.inner import counter, parts

# They divide a gradient by what they know of its size, or take no more than its sign. Not every
# version of Keras has all.
_SCALE_INVARIANT = tuple(
    getattr(keras.optimizers, name)
    for name in (
        "Adadelta",
        "Adafactor",
        "Adagrad",
        "Adam",
        "Adamax",
        "Ftrl",
        "Lamb",
        "Lion",
        "Muon",
        "Nadam",
        "RMSprop",
        "ScheduleFreeAdamW",
    )
    if hasattr(keras.optimizers, name)
)

# Their steps change each weight by about the rate, whatever its gradient.
_BY_RATE = (
    keras.optimizers.Adam,
    keras.optimizers.Adamax,
    keras.optimizers.Lion,
    keras.optimizers.Nadam,
    keras.optimizers.RMSprop,
)

# What an optimizer is taken to repeat of its steps if that is not known: the usual momentum.
_USUAL_MOMENTUM = 0.9


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


def is_scale_invariant(optimizer: Any) -> bool:
    """Whether steps are as long if all gradients are scaled by one factor: the rate sets them.

    Of an optimizer that is none of Keras' own it is not known, and taken for untrue.
    """
    return all(isinstance(part, _SCALE_INVARIANT) for part in parts(optimizer))


def moves_by_rate(optimizer: Any) -> bool:
    """Whether a step changes each weight by about the rate, whatever its gradient.

    Of an optimizer that is none of Keras' own it is not known, and taken for untrue.
    """
    return all(isinstance(part, _BY_RATE) for part in parts(optimizer))


def momentum(optimizer: Any) -> float:
    """Return what share of a step an optimizer repeats in the next.

    It is known of Keras' SGD. Any other optimizer is taken to have the usual momentum.
    """
    return max(
        float(part.momentum) if isinstance(part, keras.optimizers.SGD) else _USUAL_MOMENTUM
        for part in parts(optimizer)
    )


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
