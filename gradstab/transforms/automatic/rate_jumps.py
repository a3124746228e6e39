"""A rate far above all rates before it is held back until it has lasted."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal, final

from keras import ops

from gradstab._serialization import register
from gradstab._validation import check_float
from gradstab.functional.limits import is_above
from gradstab.transforms.base import Context, SeedSpec, State, StateSpec, Transform
from gradstab.transforms.bounds import Bound


@final
@register
class LimitRateJumps(Transform):
    """Holds back a learning rate that jumps, for some steps.

    A rate η > k·p, where p is the largest rate of the steps before, is taken for an accident, and
    the step has the rate p instead. With each such step in a row the limit grows by a further
    factor k: a rate that was raised for good is believed after ⌈log_k(η/p)⌉ - 1 steps, four for a
    jump by a thousand. Schedules and warm-ups, whose rate grows by less than k in a step, are never
    touched. It serves optimizers such as Adam, whose steps a single wrong rate makes long whatever
    the gradient.

    Where the optimizer has no single rate (`MultiOptimizer`) it does nothing.

    Args:
        factor: k, a float above 1; infinite for no such limit. Can be assigned during a run.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is 1 or less.

    >>> LimitRateJumps()
    LimitRateJumps(factor=4.0)
    """

    stage: ClassVar[Literal["rate", "gradient", "update"]] = "rate"
    limits: ClassVar[str] = "rate_jump"
    factor = Bound(partial(check_float, minimum=1.0, allow_inf=True))

    def __init__(self, factor: float = 4.0) -> None:
        self.factor = factor

    def state_spec(self, variables: Sequence[Any]) -> dict[str, StateSpec | SeedSpec]:
        """Keep the largest rate, and how many jumps came in a row."""
        return {"peak": StateSpec(), "streak": StateSpec()}

    def apply(self, values: Any, state: State, context: Context) -> tuple[Any, State]:
        """Return the rate of this step, and take it in unless it jumps."""
        peak, streak = state["peak"], state["streak"]
        jumps = is_above(values, peak * ops.power(self.bound("factor"), streak + 1.0))
        rate = ops.where(jumps, peak, values)
        return rate, {
            "peak": ops.maximum(peak, rate),
            "streak": ops.where(jumps, streak + 1.0, 0.0),
        }
