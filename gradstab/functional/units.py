"""What concerns the units of a tensor: the parts that each make one output of a layer.

The axes of a unit are those over which its norm or mean is taken. Everything is computed in
float32 (float64 for float64) and given back in the tensor's own dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import ops

from gradstab.functional.clipping import clip_factor
from gradstab.functional.norms import widen


def unit_norms(value: Any, axes: Sequence[int]) -> Any:
    """Return the norm of each unit of a tensor; safe from overflow.

    Args:
        value: Tensor or array of any shape, in any float dtype.
        axes: Axes of one unit; without any, each entry is a unit.

    Returns:
        A tensor of the same rank, float32 (float64 for float64 input), of size 1 along `axes`.

    >>> import numpy as np
    >>> unit_norms(np.array([[3.0, 1e30], [4.0, 0.0]], "float32"), (0,)).numpy()
    array([[5.e+00, 1.e+30]], dtype=float32)
    """
    magnitudes = ops.abs(widen(value))
    if not axes:
        return magnitudes
    largest = ops.max(magnitudes, axis=tuple(axes), keepdims=True)
    usable = ops.logical_and(largest > 0, ops.isfinite(largest))
    scale = ops.where(usable, largest, ops.ones_like(largest))
    squares = ops.sum(ops.square(magnitudes / scale), axis=tuple(axes), keepdims=True)
    return scale * ops.sqrt(squares)


def clip_units(value: Any, max_norms: Any, axes: Sequence[int]) -> tuple[Any, Any]:
    """Scale each unit so that its norm is at most its bound.

    A unit that holds NaN or infinity is passed on as it came.

    Args:
        value: Tensor or array.
        max_norms: Bounds that broadcast against `unit_norms(value, axes)`; may be infinite.
        axes: Axes of one unit.

    Returns:
        The scaled tensor, and whether any unit was scaled, a boolean scalar tensor.

    >>> import numpy as np
    >>> clipped, did = clip_units(np.array([[3.0, 0.5], [4.0, 0.0]], "float32"), 1.0, (0,))
    >>> clipped.numpy().round(6).tolist(), bool(did)
    ([[0.6000000238418579, 0.5], [0.800000011920929, 0.0]], True)
    """
    tensor = ops.convert_to_tensor(value)
    wide = widen(tensor)
    factors = clip_factor(ops.cast(unit_norms(tensor, axes), "float32"), max_norms)
    return ops.cast(wide * ops.cast(factors, wide.dtype), tensor.dtype), ops.any(factors < 1.0)


def centered(value: Any, axes: Sequence[int]) -> Any:
    """Subtract from each unit its mean.

    >>> import numpy as np
    >>> centered(np.array([[1.0, 2.0], [3.0, 6.0]], "float32"), (0,)).numpy().tolist()
    [[-1.0, -2.0], [1.0, 2.0]]
    """
    tensor = ops.convert_to_tensor(value)
    wide = widen(tensor)
    return ops.cast(wide - ops.mean(wide, axis=tuple(axes), keepdims=True), tensor.dtype)
