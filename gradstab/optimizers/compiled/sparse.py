"""Sparse gradients (TensorFlow): their rows apart from their values, each row once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


def is_sparse(gradient: Any) -> bool:
    """Whether a gradient holds some rows only, as those of an `Embedding` do."""
    return isinstance(gradient, tf.IndexedSlices)


def map_values(function: Callable[[Any], Any], gradient: Any) -> Any:
    """Apply a function to a gradient's entries: all of them, or those of the rows that it holds."""
    if not is_sparse(gradient):
        return function(gradient)
    return tf.IndexedSlices(
        function(gradient.values), gradient.indices, dense_shape=gradient.dense_shape
    )


def split_sparse(gradients: Sequence[Any]) -> tuple[list[Any], list[Any]]:
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
        if is_sparse(gradient):
            summed, index = _sum_equal_rows(gradient)
            values.append(summed)
            rows.append(index)
        else:
            values.append(None if gradient is None else tf.convert_to_tensor(gradient))
            rows.append(None)
    return values, rows


def join_sparse(values: Sequence[Any], rows: Sequence[Any], gradients: Sequence[Any]) -> list[Any]:
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


def with_rows_once(gradient: Any) -> Any:
    """Sum the duplicate rows of a sparse gradient, which Keras would square one by one."""
    if not is_sparse(gradient):
        return gradient
    values, rows = split_sparse([gradient])
    return join_sparse(values, rows, [gradient])[0]


def dense(gradient: Any) -> Any:
    """Return a sparse gradient as the dense one that it stands for; a dense one as it is.

    Duplicate rows are summed. (`ops.convert_to_tensor` would leave it sparse.)
    """
    return tf.convert_to_tensor(gradient)
