"""What there is to tell of tensors beyond their norms: a number for each, in one float32 vector.

Half precision is widened first. `None` counts as a tensor without entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from keras import ops

from gradstab._variables import value_of
from gradstab.functional._grouping import alike
from gradstab.functional.norms import widen

# Entries up to which copying tensors side by side costs less than an operation for each.
_SMALL: Final = 16_384


def largest_magnitudes(values: Sequence[Any]) -> Any:
    """Return the largest magnitude among the finite entries of each tensor, 0 if there is none.

    >>> import numpy as np
    >>> largest_magnitudes([np.array([1.0, -3.0, np.inf]), None]).numpy().tolist()
    [3.0, 0.0]
    """

    def largest(rows: Any) -> Any:
        return ops.max(ops.where(ops.isfinite(rows), ops.abs(rows), 0.0), axis=1)

    return _each(largest, values)


def norms_in_double(values: Sequence[Any]) -> Any:
    """Return the Euclidean norm of each tensor; the squares are summed up in float64.

    That holds the squares of all float32 numbers, and takes a compiler one pass: where norms are
    not on the way of every step, `norms.norms`, whose two ways are faster, takes longer to compile.

    >>> import numpy as np
    >>> norms_in_double([np.full(4, 1e30, "float32"), None]).numpy().tolist()
    [2.0000000300949324e+30, 0.0]
    """

    def norm(rows: Any) -> Any:
        return ops.sqrt(ops.sum(ops.square(ops.cast(rows, "float64")), axis=1))

    return _each(norm, values)


def counts_of_nonzero(values: Sequence[Any]) -> Any:
    """Return how many entries of each tensor are not exactly zero; NaN is not zero.

    >>> import numpy as np
    >>> counts_of_nonzero([np.array([0.0, 2.0, np.nan])]).numpy().tolist()
    [2.0]
    """
    return _each(lambda rows: ops.sum(ops.cast(rows != 0, "float32"), axis=1), values)


def counts_of_nonfinite(values: Sequence[Any]) -> Any:
    """Return how many entries of each tensor are NaN or infinite.

    >>> import numpy as np
    >>> counts_of_nonfinite([np.array([0.0, np.inf, np.nan])]).numpy().tolist()
    [2.0]
    """

    def count(rows: Any) -> Any:
        return ops.sum(ops.cast(ops.logical_not(ops.isfinite(rows)), "float32"), axis=1)

    return _each(count, values)


def dot_products(first: Sequence[Any], second: Sequence[Any]) -> Any:
    """Return Σᵢ xᵢ·yᵢ for each pair of tensors of equal shape, 0 where one is `None`.

    >>> import numpy as np
    >>> dot_products([np.array([1.0, 2.0])], [np.array([3.0, 4.0])]).numpy().tolist()
    [11.0]
    """

    def product(rows: Any, others: Any) -> Any:
        return ops.sum(rows * ops.cast(others, rows.dtype), axis=1)

    return _each(product, first, second)


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


def _each(function: Callable[..., Any], *lists: Sequence[Any]) -> Any:
    """Apply a function to each tensor that has entries, widened, and return one float32 vector.

    Small tensors of one shape are looked at together, as the rows of a matrix; by XLA, which would
    compile a kernel for each, large ones too.

    Args:
        function: Takes a matrix for each list and returns a number for each of the rows.
        lists: Tensors, those at one place all of one shape; `None` and those without entries give
            0.
    """
    present: list[Any] = [
        None if any(value is None or 0 in value.shape for value in values) else values
        for values in zip(*lists, strict=True)
    ]
    results: list[Any] = [ops.zeros((), "float32")] * len(present)
    firsts = [None if values is None else values[0] for values in present]
    for places in alike(firsts, _SMALL, under_xla=math.inf):
        columns = zip(*(present[place] for place in places), strict=True)
        found = ops.cast(function(*map(_matrix, columns)), "float32")
        for place, number in zip(places, ops.unstack(found, len(places)), strict=True):
            results[place] = number
    return ops.stack(results)


def _matrix(values: Sequence[Any]) -> Any:
    """Return tensors of one shape, widened, as the rows of a matrix."""
    tensors = [widen(value_of(value)) for value in values]
    stacked = ops.stack(tensors) if len(tensors) > 1 else tensors[0]
    return ops.reshape(stacked, (len(tensors), -1))
