"""Checks for NaN and infinity over lists of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import ops


def finite(values: Sequence[Any]) -> Any:
    """Say for each tensor whether all its entries are finite.

    Args:
        values: Tensors or arrays of any shapes; `None` counts as finite.

    Returns:
        A boolean tensor of shape `(len(values),)`.

    >>> import numpy as np
    >>> finite([np.array([1.0, np.nan]), None, np.array([2.0])]).numpy().tolist()
    [False, True, True]
    """
    if not values:
        return ops.ones((0,), "bool")
    return ops.stack(
        [
            ops.convert_to_tensor(True) if value is None else ops.all(ops.isfinite(value))
            for value in values
        ]
    )


def all_finite(values: Sequence[Any]) -> Any:
    """Say whether every entry of every tensor is finite, as a boolean scalar tensor."""
    return ops.all(finite(values))


def first_false(flags: Any) -> Any:
    """Return the index of the first false flag as an int32 scalar, or -1 where all are true.

    >>> import numpy as np
    >>> int(first_false(np.array([True, False, False]))), int(first_false(np.array([True])))
    (1, -1)
    """
    # Of booleans, for TensorFlow has no kernel for integers on GPUs.
    bad = ops.logical_not(flags)
    return ops.where(ops.any(bad), ops.cast(ops.argmax(bad), "int32"), -1)


def any_of(flags: Sequence[Any]) -> Any:
    """Return whether any of some boolean scalar tensors is true."""
    # Never a flag itself: the graph optimizer takes the negation of `x > y` for `x <= y`, which NaN
    # is not.
    return ops.any(ops.stack(list(flags))) if flags else ops.convert_to_tensor(False)
