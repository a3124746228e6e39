"""What needs TensorFlow: conditional application, sparse rows, where a tensor may be used.

Strategies with more than one replica, and accumulation, come to this room when they are supported.
Until then they are refused here, rather than clipped wrongly as each replica's own share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def refuse_several_replicas() -> None:
    """Raise if a strategy with more than one replica is in scope.

    Raises:
        ValueError: If so. Clipping before the gradients are summed over the replicas would bound
            each replica's share in place of the gradient.
    """
    strategy = tf.distribute.get_strategy()
    if strategy.num_replicas_in_sync > 1:
        raise ValueError(
            "StabilizedOptimizer trains on one replica in this version. Received: "
            f"{type(strategy).__name__} with {strategy.num_replicas_in_sync} replicas. Train "
            "without the strategy, or use the inner optimizer alone under it"
        )


def as_written(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep AutoGraph from rewriting a function, and what it calls, in a `tf.function`.

    Keras' own optimizers are exempt by name. Rewriting costs the first trace seconds.
    """
    converted: Callable[..., Any] = tf.autograph.experimental.do_not_convert(function)
    return converted


def apply_if(accept: Any | None, apply: Callable[[], None]) -> None:
    """Run `apply` where `accept` is true, and nothing at all where it is false.

    Args:
        accept: Boolean scalar tensor, or `None` for "always".
        apply: Writes variables, returns nothing.
    """
    if accept is None:
        apply()
    else:
        tf.cond(accept, apply, lambda: None)


def split_sparse(gradients: list[Any]) -> tuple[list[Any], list[Any]]:
    """Split gradients into tensors and, for sparse ones, the rows that they hold.

    A row that occurs several times is summed into its first occurrence, as the dense gradient would
    have it; Keras squares the parts. The shape stays as it is, so that XLA can compile it: the
    slots left over hold zeros and name a row that is there anyway.

    Args:
        gradients: Tensors, `tf.IndexedSlices` or `None`.

    Returns:
        The tensors (of sparse gradients the rows' values), and row indices or `None`, one each.
    """
    values: list[Any] = []
    rows: list[Any] = []
    for gradient in gradients:
        if isinstance(gradient, tf.IndexedSlices):
            summed, index = _sum_equal_rows(gradient)
            values.append(summed)
            rows.append(index)
        else:
            values.append(None if gradient is None else tf.convert_to_tensor(gradient))
            rows.append(None)
    return values, rows


def join_sparse(values: list[Any], rows: list[Any], gradients: list[Any]) -> list[Any]:
    """Put the rows back beside their values: the inverse of `split_sparse`."""
    return [
        value if index is None else tf.IndexedSlices(value, index, dense_shape=gradient.dense_shape)
        for value, index, gradient in zip(values, rows, gradients, strict=True)
    ]


def _sum_equal_rows(gradient: tf.IndexedSlices) -> tuple[Any, Any]:
    order = tf.argsort(gradient.indices, stable=True)
    rows = tf.gather(gradient.indices, order)
    is_new = tf.concat([rows[:1] == rows[:1], rows[1:] != rows[:-1]], axis=0)
    slot = tf.cumsum(tf.cast(is_new, tf.int32)) - 1
    count = tf.shape(rows)[0]
    wide = tf.cast(gradient.values, tf.float32) if gradient.dtype.size < 4 else gradient.values
    summed = tf.math.unsorted_segment_sum(tf.gather(wide, order), slot, count)
    # Slots beyond the last distinct row hold zeros; the largest row serves as their index.
    first = tf.math.unsorted_segment_min(rows, slot, count)
    return tf.cast(summed, gradient.dtype), tf.minimum(first, tf.reduce_max(rows))


def usable_here(tensor: Any | None) -> Any | None:
    """Return a scalar tensor if the function that is being traced made it, else `None`.

    The loss that a trainer showed in an earlier trace must not leak into this one.
    """
    if tensor is None or not tf.is_tensor(tensor) or tensor.shape.rank != 0:
        return None
    if tf.executing_eagerly():
        return None if tf.is_symbolic_tensor(tensor) else tensor
    return tensor if getattr(tensor, "graph", None) is tf.compat.v1.get_default_graph() else None
