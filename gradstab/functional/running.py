"""Running statistics of a number from step to step: a bounded history, moving averages.

Each function takes what is known and gives what is known next, in float32; nothing is kept here.
"""

from __future__ import annotations

from typing import Any

from keras import ops


def push(history: Any, count: Any, value: Any) -> Any:
    """Write a value into a ring, in place of the oldest.

    Args:
        history: Vector of the last numbers, in the order of the ring.
        count: How many were written before, an integer scalar.
        value: The number to write.

    >>> import numpy as np
    >>> push(np.array([1.0, 2.0, 3.0], "float32"), 4, 9.0).numpy().tolist()
    [1.0, 9.0, 3.0]
    """
    size = history.shape[0]
    here = ops.arange(size, dtype="int64") == ops.mod(ops.cast(count, "int64"), size)
    return ops.where(here, ops.cast(value, "float32"), history)


def percentile(history: Any, count: Any, rank: Any) -> Any:
    """Return a percentile of what a ring holds, interpolated linearly as NumPy does.

    Args:
        history: Vector of numbers.
        count: How many were written so far, an integer scalar of at least 1.
        rank: Percentage between 0 and 100.

    >>> import numpy as np
    >>> float(percentile(np.array([4.0, 1.0, 3.0, 0.0], "float32"), 3, 50.0))
    3.0
    """
    size = history.shape[0]
    held = ops.minimum(ops.cast(count, "int64"), size)
    written = ops.arange(size, dtype="int64") < held
    ordered = ops.sort(ops.where(written, history, float("inf")))
    place = ops.cast(rank, "float32") / 100.0 * ops.cast(held - 1, "float32")
    below = ops.minimum(ops.cast(ops.floor(place), "int64"), held - 1)
    low = ops.take(ordered, below)
    high = ops.take(ordered, ops.minimum(below + 1, held - 1))
    return low + (place - ops.cast(below, "float32")) * (high - low)


def mean_and_deviation(history: Any, count: Any) -> tuple[Any, Any]:
    """Return mean and standard deviation of what a ring holds; safe from overflow.

    Args:
        history: Vector of numbers.
        count: How many were written so far, an integer scalar.

    >>> import numpy as np
    >>> ring = np.array([1.0, 3.0, 7.0], "float32")
    >>> [round(float(x), 6) for x in mean_and_deviation(ring, 2)]
    [2.0, 1.0]
    """
    size = history.shape[0]
    held = ops.minimum(ops.cast(count, "int64"), size)
    written = ops.arange(size, dtype="int64") < held
    values = ops.where(written, history, 0.0)
    largest = ops.max(ops.abs(values))
    scale = ops.where(largest > 0, largest, 1.0)
    number = ops.cast(ops.maximum(held, 1), "float32")
    mean = ops.sum(values / scale) / number
    spread = ops.where(written, values / scale - mean, 0.0)
    return scale * mean, scale * ops.sqrt(ops.sum(ops.square(spread)) / number)


def accumulate(mean: Any, variance: Any, count: Any, value: Any) -> tuple[Any, Any]:
    """Take one more number into a mean and a (population) variance.

    Args:
        mean: Mean of the numbers so far.
        variance: Their variance.
        count: How many they are.
        value: The next number.

    >>> [float(x) for x in accumulate(1.0, 0.0, 1, 3.0)]
    [2.0, 1.0]
    """
    before = ops.cast(count, "float32")
    difference = value - mean
    new_mean = mean + difference / (before + 1.0)
    return new_mean, (variance * before + difference * (value - new_mean)) / (before + 1.0)


def average(mean: Any, variance: Any, value: Any, decay: float) -> tuple[Any, Any]:
    """Move an average, and that of the squared distance from the new average, towards a number.

    μ ← α·μ + (1 − α)·n, then σ² ← α·σ² + (1 − α)·(n − μ)².

    Args:
        mean: μ.
        variance: σ².
        value: n.
        decay: α, the share that is kept.

    >>> [round(float(x), 6) for x in average(1.0, 0.25, 1.500001, 0.97)]
    [1.015, 0.249557]
    """
    new_mean = decay * mean + (1.0 - decay) * value
    return new_mean, decay * variance + (1.0 - decay) * ops.square(value - new_mean)
