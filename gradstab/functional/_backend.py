"""The few operations for which `keras.ops` has no equal in speed, with what serves elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from gradstab.keras_hooks.conditions import kept_whole


def half_sum_of_squares(value: Any) -> Any:
    """Return ½·Σ xᵢ² of a float tensor in its own dtype.

    TensorFlow has one operation for it, which needs no memory for the squares; halving is exact.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.nn.l2_loss(value)
    return 0.5 * ops.sum(ops.square(value))


def choose(condition: Any, if_true: Callable[[], Any], if_false: Callable[[], Any]) -> Any:
    """Return what one of two functions gives, at next to no cost for the one that is not run.

    Args:
        condition: Boolean scalar tensor.
        if_true: Returns a tensor.
        if_false: Returns one of the same dtype.
    """
    return kept_whole(ops.cond(condition, if_true, if_false))


def select(condition: Any, if_true: Any, if_false: Any) -> Any:
    """Return one of two tensors of equal shape and dtype, by a scalar, without broadcasting.

    `where` broadcasts the condition over all entries, which takes TensorFlow twice as long.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.raw_ops.Select(condition=condition, x=if_true, y=if_false)
    return ops.where(condition, if_true, if_false)


def slope(function: Callable[[Any], Any], points: Any) -> Any | None:
    """Return the derivative of an elementwise function at some points, by differentiation.

    Args:
        function: Takes and returns a tensor.
        points: Array of any shape.

    Returns:
        An array of that shape; `None` where the backend can't see through the function.
    """
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    x = tf.constant(points)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = function(x)
        if not tf.is_tensor(y):
            return None
    result = tape.gradient(y, x)
    return None if result is None else result.numpy()


def is_symbolic(value: Any) -> bool:
    """Whether a value is a tensor of a graph that is being traced, without numbers yet."""
    if keras.backend.backend() != "tensorflow":
        return bool(keras.backend.is_keras_tensor(value))
    import tensorflow as tf

    return bool(tf.is_symbolic_tensor(value))
