"""How far a phase has come, and the curves along which a rate goes from one value to another.

Progress is counted in whole steps before it becomes a float32: near the end of a phase the steps
that are left are few, and their number is exact, where one minus the share that is done is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from keras import ops


def progress(step: Any, begin: int, num_steps: int) -> tuple[Any, Any]:
    """Return the share of a phase that lies ahead, and the share that is done, both from 0 to 1.

    Args:
        step: Integer tensor of steps.
        begin: The phase's first step.
        num_steps: Its length, at least 1.
    """
    done = ops.clip(step - begin, 0, num_steps)
    total = float(num_steps)
    return ops.cast(num_steps - done, "float32") / total, ops.cast(done, "float32") / total


def ramp(step: Any, num_steps: int, initial: float, final: Any) -> Any:
    """Return a straight line that is at `final` at step `num_steps`, and stays there.

    It is at `initial` one step before step 0, so that with 0 no step is taken in vain.

    Args:
        step: Integer tensor of steps.
        num_steps: Steps below `final`, at least 0.
        initial: Rate from which the line starts.
        final: Rate to which it leads, a number or a float32 tensor.
    """
    total = float(num_steps + 1)
    done = ops.cast(ops.minimum(step, num_steps) + 1, "float32") / total
    left = ops.cast(ops.maximum(num_steps - step, 0), "float32") / total
    return final * done + initial * left


def along(shape: str, initial: float, final: float, shares: tuple[Any, Any]) -> Any:
    """Return the rate on the way from one to another.

    Args:
        shape: One of `SHAPES`.
        initial: Rate at the begin of the phase.
        final: Rate at its end.
        shares: What `progress` returned.
    """
    of_initial, of_final = SHAPES[shape](*shares)
    return initial * of_initial + final * of_final


def _linear(left: Any, done: Any) -> tuple[Any, Any]:
    return left, done


def _cosine(left: Any, done: Any) -> tuple[Any, Any]:
    # (1 − cos πx)/2 = sin²(πx/2), which does not cancel where x is small.
    return ops.square(ops.sin(math.pi / 2 * left)), ops.square(ops.sin(math.pi / 2 * done))


def _one_minus_sqrt(left: Any, done: Any) -> tuple[Any, Any]:
    # 1 − √(1 − x) = x/(1 + √(1 − x)), for the same reason.
    root = ops.sqrt(done)
    return left / (1.0 + root), root


# The parts that the first and the last rate have, given the steps that are left and done.
SHAPES: Final[dict[str, Callable[[Any, Any], tuple[Any, Any]]]] = {
    "linear": _linear,
    "cosine": _cosine,
    "1-sqrt": _one_minus_sqrt,
}
