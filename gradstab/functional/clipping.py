"""The three clips of the field, as functions on lists of tensors.

A bound that does not bind leaves every entry as it is, bit for bit, and so does an infinite bound.
Where a norm is not finite there is no direction to keep: what it belongs to is passed on as it
came, so that the variable at fault can still be told from the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import ops

from gradstab._variables import value_of
from gradstab.functional._grouping import alike
from gradstab.functional.norms import SMALL, global_norm, norms, widen


def clip_factor(norm: Any, max_norm: Any) -> Any:
    """Return min(1, `max_norm` / `norm`), and 1 where `norm` is not finite.

    Args:
        norm: Norms, a float32 tensor of any shape.
        max_norm: Bound, a scalar that broadcasts against `norm`; may be infinite.

    Returns:
        A float32 tensor of the shape of `norm`, exactly 1 wherever nothing is to be clipped.
    """
    max_norm = ops.cast(max_norm, "float32")
    exceeds = ops.logical_and(norm > max_norm, ops.isfinite(norm))
    return ops.where(exceeds, max_norm / norm, 1.0)


def scale(value: Any, factor: Any) -> Any:
    """Return `value` times a float32 factor, multiplied in float32, in the dtype of `value`."""
    if value is None:
        return None
    tensor = ops.convert_to_tensor(value)
    wide = widen(tensor)
    return ops.cast(wide * ops.cast(factor, wide.dtype), tensor.dtype)


def scale_each(values: Sequence[Any], factors: Any) -> list[Any]:
    """Return each tensor times its factor, as `scale` does, small ones of one shape together.

    Args:
        values: Tensors or arrays; `None` stays `None`.
        factors: Float32 scalar for all of them, or vector with one for each.
    """
    tensors = [None if value is None else value_of(value) for value in values]
    factors = ops.convert_to_tensor(factors)
    is_one = len(factors.shape) == 0
    each = [] if is_one else ops.unstack(factors, len(tensors))
    results: list[Any] = [None] * len(tensors)
    for places in alike(tensors, SMALL):
        if len(places) == 1:
            (place,) = places
            results[place] = scale(tensors[place], factors if is_one else each[place])
            continue
        stacked = ops.stack([tensors[place] for place in places])
        rest = [1] * (len(stacked.shape) - 1)
        factor = factors if is_one else ops.reshape(ops.take(factors, places), [-1, *rest])
        scaled = ops.unstack(scale(stacked, factor), len(places))
        for place, value in zip(places, scaled, strict=True):
            results[place] = value
    return results


def clip_by_value(values: Sequence[Any], clip_value: Any) -> list[Any]:
    """Limit every entry to [-`clip_value`, `clip_value`]. Changes the direction; NaN stays NaN.

    Args:
        values: Tensors or arrays; `None` stays `None`.
        clip_value: Bound, a positive scalar; may be infinite.

    >>> import numpy as np
    >>> clip_by_value([np.array([-3.0, 0.5])], 1.0)[0].numpy().tolist()
    [-1.0, 0.5]
    """

    def clip(value: Any) -> Any:
        if value is None:
            return None
        tensor = ops.convert_to_tensor(value)
        bound = ops.cast(clip_value, tensor.dtype)
        return ops.clip(tensor, -bound, bound)

    return [clip(value) for value in values]


def clip_by_norm(values: Sequence[Any], max_norm: Any) -> list[Any]:
    """Scale each tensor on its own so that its norm is at most `max_norm`, as Keras' `clipnorm`.

    g ← g·min(1, c/‖g‖) for each tensor g.

    Args:
        values: Tensors or arrays; `None` stays `None`.
        max_norm: c, a positive scalar; may be infinite.

    >>> import numpy as np
    >>> clip_by_norm([np.array([6.0, 8.0]), np.array([0.5])], 5.0)[0].numpy().tolist()
    [3.0, 4.0]
    """
    return scale_each(values, clip_factor(norms(values), max_norm))


def clip_by_global_norm(values: Sequence[Any], max_norm: Any) -> list[Any]:
    """Scale all tensors together so that their global norm is at most `max_norm`.

    g ← g·min(1, c/‖(g₁, …, gₙ)‖): the direction of the whole gradient is kept.

    Args:
        values: Tensors or arrays; `None` stays `None`.
        max_norm: c, a positive scalar; may be infinite.

    Reference: Pascanu, Mikolov and Bengio, 2013, On the difficulty of training recurrent neural
    networks.

    >>> import numpy as np
    >>> clipped = clip_by_global_norm([np.array([500.0, 5.0]), np.array([300.0, 3.0])], 1.0)
    >>> clipped[0].numpy().round(6).tolist()
    [0.85745, 0.008575]
    """
    return scale_each(values, clip_factor(global_norm(values), max_norm))
