"""Norms of tensors and of lists of tensors, accumulated in float32 and safe from overflow.

Keras computes norms in the gradient's own dtype: in float16 a true norm of 608 comes out as
infinite, and in float32 entries of 1e20 do. Here half precision is widened first, and where squares
overflow or underflow they are summed in float64, or divided by the largest magnitude before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from gradstab._variables import value_of
from gradstab.functional._backend import choose, half_sum_of_squares
from gradstab.functional._grouping import alike
from gradstab.keras_hooks.conditions import is_compiled_by_xla

# Entries up to which tensors of one shape are squared and scaled together.
SMALL = 1024
# Squares below this have lost digits to underflow (float32 is normal down to 1.2e-38).
_SMALLEST_SAFE_SQUARE = 1e-30


def widen(value: Any) -> Any:
    """Return `value` as a tensor in which sums may be accumulated: float32, or float64 as it is."""
    tensor = ops.convert_to_tensor(value)
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    return tensor if dtype in ("float32", "float64") else ops.cast(tensor, "float32")


def norm(value: Any, ord: float = 2.0) -> Any:
    """Return the norm of one tensor over all its entries.

    ‖x‖_p = m·(Σᵢ (|xᵢ|/m)^p)^(1/p) with m the largest magnitude, so that no power overflows. A NaN
    entry gives NaN, an infinite one infinity.

    Args:
        value: Tensor or array of any shape, in any float dtype.
        ord: p, a positive float or `math.inf`.

    Returns:
        A scalar tensor, float32 (float64 for float64 input).

    Raises:
        ValueError: If `ord` is not positive.

    >>> import numpy as np
    >>> norm(np.full(4, 1e20, "float32")).numpy()
    np.float32(2e+20)
    """
    if not ord > 0:
        raise ValueError(f"`ord` must be a positive float. Received: ord={ord!r}")
    magnitudes = ops.abs(widen(value))
    if 0 in magnitudes.shape:
        return ops.cast(0.0, magnitudes.dtype)
    largest = ops.max(magnitudes)
    usable = ops.logical_and(largest > 0, ops.isfinite(largest))
    if ord == math.inf:
        # The maximum drops NaN on some devices.
        return ops.where(ops.any(ops.isnan(magnitudes)), math.nan, largest)
    scale = ops.where(usable, largest, ops.ones_like(largest))
    scaled = magnitudes / scale
    if ord == 2.0:
        return scale * ops.sqrt(ops.sum(ops.square(scaled)))
    return scale * ops.power(ops.sum(ops.power(scaled, ord)), 1.0 / ord)


def norms(values: Sequence[Any], ord: float = 2.0) -> Any:
    """Return the norm of each tensor of a list, as one float32 vector.

    For p = 2 the plain sums of squares serve where they neither overflowed nor underflowed, which
    is one pass over memory; only else are they summed in float64.

    Args:
        values: Tensors or arrays; `None` counts as a tensor without entries.
        ord: p, a positive float or `math.inf`.

    Returns:
        A float32 tensor of shape `(len(values),)`.
    """
    present = [value for value in values if value is not None]
    if not present:
        return ops.zeros((len(values),), "float32")
    if ord == 2.0:
        squares = _sums_of_squares(present)
        safe = ops.all(_is_safe(squares))
        result = choose(safe, lambda: ops.sqrt(squares), lambda: _root(_wide_squares(present)))
    else:
        result = ops.stack([ops.cast(norm(value, ord), "float32") for value in present])
    return spread(result, [value is not None for value in values])


def norms_and_global_norm(values: Sequence[Any]) -> tuple[Any, Any]:
    """Return `norms` and `global_norm` of a list, for hardly more than the norms.

    A tensor whose norm is below 1e-19 may count as zero, unless that of all together is as small.

    Args:
        values: Tensors or arrays; `None` counts as a tensor without entries.

    Returns:
        Float32 tensors of shapes `(len(values),)` and `()`.
    """
    present = [value for value in values if value is not None]
    if not present:
        return ops.zeros((len(values),), "float32"), ops.zeros((), "float32")

    def in_float64() -> Any:
        wide = _wide_squares(present)
        return _root(ops.append(wide, ops.sum(wide)))

    if is_compiled_by_xla():
        # It widens while it sums, at no cost; a condition costs a second kernel for each tensor.
        both = in_float64()
    else:
        squares = _sums_of_squares(present)
        total = ops.sum(squares)
        both = choose(_is_safe(total), lambda: ops.sqrt(ops.append(squares, total)), in_float64)
    vector = spread(both[:-1], [value is not None for value in values])
    return vector, both[-1]


def _sums_of_squares(values: Sequence[Any]) -> Any:
    tensors = [value_of(value) for value in values]
    alone: list[int] = []
    together: list[int] = []
    parts = []
    for places in alike(tensors, SMALL):
        if len(places) == 1:
            alone += places
            continue
        together += places
        squares = ops.square(widen(ops.stack([tensors[place] for place in places])))
        sums = ops.sum(squares, axis=tuple(range(1, len(squares.shape))))
        parts.append(ops.cast(sums, "float32"))
    if alone:
        halves = [half_sum_of_squares(widen(tensors[place])) for place in alone]
        parts.insert(0, 2.0 * ops.stack([ops.cast(half, "float32") for half in halves]))
    order = alone + together
    sums = parts[0] if len(parts) == 1 else ops.concatenate(parts)
    return sums if order == sorted(order) else ops.take(sums, np.argsort(order))


def _is_safe(squares: Any) -> Any:
    """Whether a sum of squares has kept its digits; NaN and infinity fail one comparison."""
    return ops.logical_and(squares >= _SMALLEST_SAFE_SQUARE, squares < math.inf)


def _wide_squares(values: Sequence[Any]) -> Any:
    """Return sums of squares in float64, which holds those of all that float32 holds."""
    return 2.0 * ops.stack([half_sum_of_squares(ops.cast(value, "float64")) for value in values])


def _root(squares: Any) -> Any:
    return ops.cast(ops.sqrt(squares), "float32")


def spread(values: Any, present: Sequence[bool]) -> Any:
    """Put the entries of a vector where `present` is true, and zeros elsewhere."""
    if all(present):
        return values
    places = [index for index, there in enumerate(present) if there]
    empty = ops.zeros((len(present),), values.dtype)
    return ops.scatter_update(empty, [[place] for place in places], values)


def combine_norms(vector: Any, ord: float = 2.0) -> Any:
    """Return the norm of the whole, given the norms of its parts (a float32 vector)."""
    return ops.cast(norm(vector, ord), "float32")


def global_norm(values: Sequence[Any], ord: float = 2.0) -> Any:
    """Return the norm over all entries of all tensors of a list.

    Args:
        values: Tensors or arrays of any shapes and float dtypes; `None` is passed over.
        ord: p, a positive float or `math.inf`.

    Returns:
        A float32 scalar tensor. NaN or infinite where an entry is.

    Reference: Pascanu, Mikolov and Bengio, 2013, On the difficulty of training recurrent neural
    networks.

    >>> import numpy as np
    >>> float(global_norm([np.array([3.0], "float16"), None, np.array([4.0])]))
    5.0
    """
    if ord == 2.0:
        return norms_and_global_norm(values)[1]
    return combine_norms(norms(values, ord), ord)
