"""How long a step may be, judged by the steps before, by the weights and by the loss.

Each function takes float32 scalar tensors and returns one; where a limit can't be told it is
infinite.
"""

from __future__ import annotations

import math
from typing import Any

from keras import ops

# Shares of a longest step that are added for a history of few steps.
_EARLY = 8.0


def early(count: Any) -> Any:
    """Return 1 + 8/t: what a limit is multiplied by after t numbers, since few tell little.

    >>> [float(early(t)) for t in (1, 2, 8)]
    [9.0, 5.0, 2.0]
    """
    number = ops.cast(ops.maximum(count, 1), "float32")
    return 1.0 + _EARLY / number


def outlier_limit(history: Any, count: Any, factor: Any) -> Any:
    """Return k·(1 + 8/t)·max of what a ring holds, after t numbers.

    The fewer there were, the more may the next one differ from them.

    Args:
        history: Vector of the last numbers, zeros where there was none yet.
        count: t, an integer scalar.
        factor: k.

    >>> import numpy as np
    >>> float(outlier_limit(np.array([1.0, 2.0, 0.0], "float32"), 2, 2.0))
    20.0
    """
    largest = ops.max(history)
    limit = factor * early(count) * largest
    return ops.where(largest > 0, limit, math.inf)


def outlier_factor(number: Any, limit: Any) -> Any:
    """Return 1 up to the limit, and (limit/number)² beyond: the farther out, the less is left."""
    exceeds = ops.logical_and(number > limit, ops.isfinite(number))
    return ops.where(exceeds, ops.square(limit / ops.where(exceeds, number, 1.0)), 1.0)


def weight_limit(ratio: Any, weight_norm: Any, rate: Any) -> Any:
    """Return r·‖w‖/η: the gradient norm at which η times it is that share of the weights.

    >>> float(weight_limit(0.01, 20.0, 0.1))
    2.0
    """
    known = ops.logical_and(rate > 0, weight_norm > 0)
    return ops.where(known, ratio * weight_norm / ops.where(known, rate, 1.0), math.inf)


def rate_limit(ratio: Any, response: Any, least: float) -> Any:
    """Return q/a, or a least rate if that is larger; no limit where a is zero.

    At that rate a step changes what a net gives by q of what it gives, to first order, where a is
    how much a step of rate 1 does.

    >>> float(rate_limit(12.0, 24.0, 1e-3)), float(rate_limit(12.0, 48.0, 0.5))
    (0.5, 0.5)
    """
    known = response > 0
    return ops.where(known, ops.maximum(ratio / ops.where(known, response, 1.0), least), math.inf)


def loss_limit(loss: Any, norm: Any, rate: Any) -> Any:
    """Return L/(η·‖g‖): the length of a step along g that would take a linear loss L to zero.

    Where the loss is not positive it tells nothing.

    Reference: Polyak, 1969, Minimization of unsmooth functionals, whose step has this length.

    >>> float(loss_limit(2.0, 10.0, 0.1))
    2.0
    """
    length = rate * norm
    known = ops.logical_and(loss > 0, length > 0)
    return ops.where(known, loss / ops.where(known, length, 1.0), math.inf)


def descent_limit(loss: Any, rate: Any, momentum: float) -> Any:
    """Return √((1 − β)·L/η): the gradient norm at which a step is predicted to undo a loss L.

    With momentum β it is taken 1/(1 − β) times in the end. Where the loss is not positive it tells
    nothing.

    >>> float(descent_limit(2.0, 0.1, 0.8))
    2.0
    """
    known = ops.logical_and(loss > 0, rate > 0)
    square = (1.0 - momentum) * loss / ops.where(known, rate, 1.0)
    return ops.where(known, ops.sqrt(ops.where(known, square, 1.0)), math.inf)


def followed(peak: Any, value: Any, growth: Any) -> Any:
    """Return the largest value so far, which grows by no more than a factor in one step.

    >>> [float(x) for x in (followed(0.0, 3.0, 1.25), followed(2.0, 9.0, 1.25))]
    [3.0, 2.5]
    """
    return ops.where(peak > 0, ops.maximum(peak, ops.minimum(value, growth * peak)), value)
