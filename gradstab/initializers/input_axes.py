"""Axes of a kernel that one unit sums over."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any


def fan_in(shape: Sequence[int], axes: Sequence[int] | None) -> int:
    """Return the number of inputs of a unit.

    Args:
        shape: Shape of the kernel.
        axes: The axes that a unit sums over; `None` for all but the last.

    Raises:
        ValueError: If the shape has no such axis.
    """
    if axes is None:
        return math.prod(shape[:-1] if len(shape) > 1 else shape)
    if any(not -len(shape) <= axis < len(shape) for axis in axes):
        raise ValueError(
            f"`input_axes` must be axes of the kernel. Received: input_axes={tuple(axes)} for a "
            f"kernel of shape {tuple(shape)}"
        )
    return math.prod(shape[axis] for axis in axes)


def check_axes(input_axes: Any) -> tuple[int, ...]:
    """Return axes as a tuple of integers, or raise.

    Raises:
        TypeError: If it is no list of integers.
    """
    is_list = isinstance(input_axes, Sequence) and not isinstance(input_axes, str | bytes)
    if not is_list or not all(isinstance(axis, numbers.Integral) for axis in input_axes):
        raise TypeError(
            f"`input_axes` must be a list of integers or None. Received: input_axes={input_axes!r}"
        )
    return tuple(int(axis) for axis in input_axes)
