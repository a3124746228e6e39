"""What there is to tell of tensors beyond their norms: a number for each, in one float32 vector.

Half precision is widened first. `None` counts as a tensor without entries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from keras import ops

from gradstab.functional.norms import widen


def largest_magnitudes(values: Sequence[Any]) -> Any:
    """Return the largest magnitude among the finite entries of each tensor, 0 if there is none.

    >>> import numpy as np
    >>> largest_magnitudes([np.array([1.0, -3.0, np.inf]), None]).numpy().tolist()
    [3.0, 0.0]
    """

    def largest(value: Any) -> Any:
        return ops.max(ops.where(ops.isfinite(value), ops.abs(value), 0.0))

    return _each(values, largest)


def counts_of_nonzero(values: Sequence[Any]) -> Any:
    """Return how many entries of each tensor are not exactly zero; NaN is not zero.

    >>> import numpy as np
    >>> counts_of_nonzero([np.array([0.0, 2.0, np.nan])]).numpy().tolist()
    [2.0]
    """
    return _each(values, lambda value: ops.sum(ops.cast(value != 0, "float32")))


def counts_of_nonfinite(values: Sequence[Any]) -> Any:
    """Return how many entries of each tensor are NaN or infinite.

    >>> import numpy as np
    >>> counts_of_nonfinite([np.array([0.0, np.inf, np.nan])]).numpy().tolist()
    [2.0]
    """

    def count(value: Any) -> Any:
        return ops.sum(ops.cast(ops.logical_not(ops.isfinite(value)), "float32"))

    return _each(values, count)


def dot_products(first: Sequence[Any], second: Sequence[Any]) -> Any:
    """Return Σᵢ xᵢ·yᵢ for each pair of tensors of equal shape, 0 where one is `None`.

    >>> import numpy as np
    >>> dot_products([np.array([1.0, 2.0])], [np.array([3.0, 4.0])]).numpy().tolist()
    [11.0]
    """
    products = [
        None if x is None or y is None else widen(x) * ops.cast(y, widen(x).dtype)
        for x, y in zip(first, second, strict=True)
    ]
    return _each(products, ops.sum)


def histogram(value: Any, bins: int) -> Any:
    """Return the smallest and the largest finite entry, and how many lie in each of equal bins.

    Entries that are not finite are left out. Where all are equal they are in the first bin.

    Args:
        value: Tensor of any shape with at least one entry, in any float dtype.
        bins: Number of bins between the two.

    Returns:
        Float32 vector of `2 + bins` numbers: both ends, then the counts.

    >>> import numpy as np
    >>> histogram(np.array([0.0, 1.0, 1.0, 4.0]), 4).numpy().tolist()
    [0.0, 4.0, 1.0, 2.0, 0.0, 1.0]
    """
    flat = ops.cast(ops.reshape(widen(value), (-1,)), "float32")
    finite = ops.isfinite(flat)
    some = ops.any(finite)
    low = ops.where(some, ops.min(ops.where(finite, flat, float("inf"))), 0.0)
    high = ops.where(some, ops.max(ops.where(finite, flat, float("-inf"))), 0.0)
    # Halves, for the whole range of float32 is more than it can hold.
    half_width = high / 2 - low / 2
    share = (flat / 2 - low / 2) / ops.where(half_width > 0, half_width, 1.0)
    place = ops.cast(ops.clip(ops.where(finite, share, 0.0) * bins, 0, bins - 1), "int32")
    counts = ops.segment_sum(ops.cast(finite, "float32"), place, num_segments=bins)
    return ops.concatenate([ops.stack([low, high]), counts])


def _each(values: Sequence[Any], function: Callable[[Any], Any]) -> Any:
    """Apply a function to each tensor that has entries, widened, and stack what it returns."""
    return ops.stack(
        [
            ops.zeros((), "float32")
            if value is None or 0 in value.shape
            else ops.cast(function(widen(value)), "float32")
            for value in values
        ]
    )
