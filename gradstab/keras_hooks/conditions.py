"""Conditions of TensorFlow that are kept whole, and whether XLA compiles what is being traced."""

from __future__ import annotations

import weakref
from typing import Any

import keras

# By this attribute TensorFlow marks a condition that it takes apart into an operation per tensor.
_TAKEN_APART = "_lower_using_switch_merge"
# Whether XLA compiles a graph: one condition is traced to find out, which takes milliseconds.
_COMPILED: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
_CONDITIONS = ("If", "StatelessIf", "Case", "StatelessCase")


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
    graph = tf.compat.v1.get_default_graph()
    if graph not in _COMPILED:
        tried = tf.cond(tf.constant(True), lambda: tf.constant(0), lambda: tf.constant(1))
        _COMPILED[graph] = not is_taken_apart(tried)
    return _COMPILED[graph]


def _condition(result: Any) -> Any:
    operation = result.op
    while operation.type == "Identity":
        operation = operation.inputs[0].op
    return operation
