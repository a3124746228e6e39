"""The few operations for which `keras.ops` has no equal in speed, with what serves elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

# By this attribute TensorFlow marks a condition that it takes apart into an operation per tensor.
_TAKEN_APART = "_lower_using_switch_merge"
_CONDITIONS = ("If", "StatelessIf", "Case", "StatelessCase")


def value_of(variable: Any) -> Any:
    """Return the value of a variable as it is now, as a tensor.

    `ops.convert_to_tensor` gives a Keras variable back as it is, to be read again wherever it is
    used: for a count of steps, once for every variable of a model.

    Args:
        variable: A Keras variable, one of the backend's own, or a tensor.
    """
    value = variable.value if isinstance(variable, keras.Variable) else variable
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.convert_to_tensor(value)
    return ops.convert_to_tensor(value)


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


def kept_whole(result: Any) -> Any:
    """Keep the condition that made a tensor from being taken apart; return the tensor.

    TensorFlow turns conditions into a switch for each tensor that goes in, which run at every step
    whether a branch is taken or not: for a hundred variables, a tenth of the step. As one operation
    a condition calls a function instead, on one device: variables that it writes must all be there.
    No public argument of `tf.cond` says so, hence the private `_set_attr`; where it is missing, and
    on GPUs, where this was not tried, nothing changes. XLA never takes conditions apart.
    """
    if keras.backend.backend() != "tensorflow":
        return result
    import tensorflow as tf

    if not tf.is_symbolic_tensor(result) or tf.config.list_logical_devices("GPU"):
        return result
    operation = _condition(result)
    if is_taken_apart(result) and hasattr(operation, "_set_attr"):
        operation._set_attr(_TAKEN_APART, tf.compat.v1.AttrValue(b=False))
    return result


def is_taken_apart(result: Any) -> bool:
    """Whether the condition that made a tensor will be taken apart, as outside of XLA it is."""
    operation = _condition(result)
    return operation.type in _CONDITIONS and _TAKEN_APART in operation.node_def.attr


def is_compiled_by_xla() -> bool:
    """Whether XLA compiles what is being traced.

    No public function tells, but conditions are marked differently there.
    """
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    if tf.executing_eagerly():
        return False
    return not is_taken_apart(
        tf.cond(tf.constant(True), lambda: tf.constant(0), lambda: tf.constant(1))
    )


def _condition(result: Any) -> Any:
    operation = result.op
    while operation.type == "Identity":
        operation = operation.inputs[0].op
    return operation


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
