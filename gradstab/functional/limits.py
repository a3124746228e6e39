"""When a step is out of line with the run so far, and what is left of it.

Each function takes float32 scalar tensors and returns them.
"""

from __future__ import annotations

from typing import Any

from keras import ops


def is_above(number: Any, limit: Any) -> Any:
    """Whether a number exceeds a limit. False where it is not finite, or there is no limit yet."""
    return ops.logical_and(ops.logical_and(limit > 0, number > limit), ops.isfinite(number))


def outlier_limit(peak: Any, count: Any, streak: Any, factor: Any, growth: float) -> Any:
    """Return k·(1 + 8/t)·p·Gᵐ: beyond it, a number is an outlier.

    Few numbers tell little, so the limit is wide at first. It grows with each outlier in a row,
    since what keeps coming is no accident.

    Args:
        peak: p, the largest number so far.
        count: t, how many there were.
        streak: m, how many outliers came just before.
        factor: k.
        growth: G.

    >>> [float(outlier_limit(1.0, t, m, 2.0, 4.0)) for t, m in ((1.0, 0.0), (8.0, 0.0), (8.0, 1.0))]
    [18.0, 4.0, 16.0]
    """
    return factor * (1.0 + 8.0 / ops.maximum(count, 1.0)) * peak * ops.power(growth, streak)


def outlier_factor(number: Any, limit: Any) -> Any:
    """Return 1 up to a limit, and (limit/number)² beyond: the farther out, the less is left.

    >>> [float(outlier_factor(number, 2.0)) for number in (1.0, 4.0)]
    [1.0, 0.25]
    """
    exceeds = is_above(number, limit)
    return ops.where(exceeds, ops.square(limit / ops.where(exceeds, number, 1.0)), 1.0)


def predicted_fall(rate: Any, product: Any, momentum: float, loss: Any) -> Any:
    """Return η·⟨g, g'⟩/((1 − β)·L): how many times over a step is predicted to undo the loss.

    To first order, a step of SGD along g' lowers the loss by η·⟨g, g'⟩, with g the gradient, and
    with momentum β it is taken 1/(1 − β) times in the end. Zero where the loss is not positive.

    Args:
        rate: η.
        product: ⟨g, g'⟩.
        momentum: β.
        loss: L.

    >>> float(predicted_fall(0.1, 20.0, 0.5, 2.0))
    2.0
    """
    known = ops.logical_and(loss > 0, ops.isfinite(rate * product))
    fall = rate * product / ((1.0 - momentum) * ops.where(known, loss, 1.0))
    return ops.where(known, fall, 0.0)


def evidence(before: Any, ratio: Any, least: float, most: float) -> Any:
    """Return the sum of log-ratios so far, within [0, most].

    That is the cumulative sum by which Page finds a change: it grows while ratios exceed 1, and
    falls back to zero while they do not.

    Args:
        before: The sum before this step.
        ratio: What a number is of the level that it may have.
        least: The most negative log-ratio that counts, a negative float.
        most: The largest sum, a positive float.

    Reference: Page, 1954, Continuous inspection schemes.

    >>> import math
    >>> [round(float(evidence(1.0, math.exp(each), -0.5, 2.0)), 3) for each in (-9, 0.25, 9)]
    [0.5, 1.25, 2.0]
    """
    return ops.clip(before + ops.maximum(ops.log(ops.maximum(ratio, 1e-30)), least), 0.0, most)
