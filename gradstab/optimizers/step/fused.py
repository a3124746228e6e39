"""Keras' SGD in one operation for each variable, where that gives the same numbers bit by bit.

Keras reads, multiplies, subtracts and writes in operations of their own, up to seven for each
variable; in a net of many small layers, starting them is most of the step. TensorFlow has kernels
that do all of it at once. They are used on CPUs alone, once they have been seen to round there as
Keras does: for GPUs, compilers join a product with the sum that it goes into. XLA fuses by itself.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf

from gradstab._variables import resource
from gradstab.keras_hooks.optimizer_state import slot
from gradstab.keras_hooks.substitute import replaced_method

# Entries of the trial: no multiple of a vector register's, so that the remainder is tried too.
_ENTRIES: Final = 1021


@contextlib.contextmanager
def with_fused_updates(
    optimizer: Any, writing: Callable[[], contextlib.AbstractContextManager[None]]
) -> Iterator[None]:
    """Have an optimizer that is SGD update variables by the kernels, wherever they may be used.

    Args:
        optimizer: The optimizer, built. Any other than Keras' own SGD is left as it is.
        writing: Gives the context for what writes variables.
    """
    if type(optimizer) is not keras.optimizers.SGD:
        yield
        return
    momentum, nesterov = optimizer.momentum, optimizer.nesterov

    def update_step(gradient: Any, variable: Any, learning_rate: Any) -> None:
        target = resource(variable)
        if not (_can_be_fused(target) and _rounds_as_keras(momentum, nesterov)):
            keras.optimizers.SGD.update_step(optimizer, gradient, variable, learning_rate)
            return
        moments = resource(slot(optimizer, "momentums", variable)) if momentum else None
        rate, gradient = tf.cast(learning_rate, tf.float32), tf.cast(gradient, tf.float32)
        with writing():
            _apply(target, moments, gradient, rate, momentum, nesterov)

    with replaced_method(optimizer, "update_step", update_step):
        yield


def _can_be_fused(variable: Any) -> bool:
    return variable.dtype == tf.float32 and "CPU" in variable.device


def _apply(
    variable: Any, moments: Any | None, gradient: Any, rate: Any, momentum: float, nesterov: bool
) -> None:
    if moments is None:
        tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=rate, delta=gradient)
        return
    tf.raw_ops.ResourceApplyKerasMomentum(
        var=variable.handle, accum=moments.handle, lr=rate, grad=gradient,
        momentum=tf.constant(momentum, tf.float32), use_nesterov=nesterov,
    )  # fmt: skip


@functools.cache
def _rounds_as_keras(momentum: float, nesterov: bool) -> bool:
    """Whether a kernel gives on this machine, and with this Keras, the bits that SGD gives."""
    # In a thread of its own no graph is being traced, and no strategy or scope is entered.
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(_try, momentum, nesterov).result()


def _try(momentum: float, nesterov: bool) -> bool:
    draw = np.random.default_rng(0)
    scales = 10.0 ** draw.uniform(-6, 3, (3, _ENTRIES))
    start, *gradients = (draw.normal(size=scales.shape) * scales).astype("float32")
    rate = 0.0123
    with tf.device("CPU"):
        variable = keras.Variable(start, dtype="float32", name="tried")
        sgd = keras.optimizers.SGD(rate, momentum, nesterov, name="tried")
        fused = tf.Variable(start)
        moments = tf.Variable(tf.zeros_like(start)) if momentum else None
        for gradient in map(tf.constant, gradients):
            sgd.apply([gradient], [variable])
            _apply(fused, moments, gradient, tf.constant(rate), momentum, nesterov)
        return fused.numpy().tobytes() == variable.numpy().tobytes()
