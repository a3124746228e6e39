"""A step far longer than all before it is shortened until such steps have lasted."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, final

from keras import ops

from gradstab._serialization import register
from gradstab._validation import check_float
from gradstab._variables import value_of
from gradstab.functional.limits import is_above, outlier_factor, outlier_limit
from gradstab.transforms.base import Context, SeedSpec, State, StateSpec, Transform
from gradstab.transforms.bounds import Bound
from gradstab.transforms.measured import Measured


@final
@register
class LimitOutliers(Transform):
    """Shortens a step that is far longer than any before, such as that of a bad batch.

    A step's length is s = η·n, with η its learning rate and n the global norm of its gradient.
    Beyond c = k·(1 + 8/t)·p, where p is the longest of the t steps before, g ← g·(c/s)²: the
    farther out a step is, the less is left of it. With each outlier in a row the limit is ten
    thousand times as wide: what keeps coming is no accident, and a limit that does not help is
    given up. Outliers do not enter p, which forgets 0.2 % a step.

    Steps in line with the run are never touched. Without a single rate (`MultiOptimizer`) s = n.
    What is not finite is passed on as it came.

    Args:
        factor: k, a float, 1 or more to be sensible; infinite for no such limit. Can be assigned
            during a run.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is zero, negative or NaN.

    >>> LimitOutliers()
    LimitOutliers(factor=2.0)
    """

    limits: ClassVar[str] = "outlier"
    factor = Bound(partial(check_float, allow_inf=True))

    # Of a level that is new for good, one step is shortened, or three at most. Where a net has
    # exploded, the second moments of Adam have to see it, or its steps stay as long as they were.
    _GROWTH: ClassVar[float] = 1e4
    # Half of a longest step is forgotten in 350 steps: after an early transient, spikes still show.
    _MEMORY: ClassVar[float] = 0.998

    def __init__(self, factor: float = 2.0) -> None:
        self.factor = factor

    def state_spec(self, variables: Sequence[Any]) -> dict[str, StateSpec | SeedSpec]:
        """Keep the longest step, the number of steps, and how many outliers came in a row."""
        return {"peak": StateSpec(), "count": StateSpec(), "streak": StateSpec()}

    def apply(self, values: Measured, state: State, context: Context) -> tuple[Measured, State]:
        """Scale all gradients by one factor, and take in the length unless it is an outlier."""
        length, peak, streak = values.global_norm, state["peak"], state["streak"]
        if context.learning_rate is not None:
            length = length * ops.cast(value_of(context.learning_rate), "float32")
        limit = outlier_limit(peak, state["count"], streak, self.bound("factor"), self._GROWTH)
        is_outlier = is_above(length, limit)
        counts = ops.logical_and(ops.isfinite(length), length > 0)
        longest = ops.maximum(ops.where(is_outlier, 0.0, length), self._MEMORY * peak)
        return values.scaled(outlier_factor(length, limit)), {
            "peak": ops.where(counts, longest, peak),
            "count": state["count"] + ops.cast(counts, "float32"),
            "streak": ops.where(counts, ops.where(is_outlier, streak + 1.0, 0.0), streak),
        }
