"""Makes an optimizer's variables ahead of the function that is being traced."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from gradstab._variables import resource


@contextlib.contextmanager
def ahead_of_the_trace(variables: Sequence[Any]) -> Iterator[None]:
    """Make variables in this block as if no function were being traced.

    A `tf.function` in which variables are made is traced twice, and each of them begins with a
    condition that asks whether it is there already. Keras builds its optimizers so, in the first
    step of `fit`; made ahead, the one trace is enough, which takes less than half of the time.

    Under a strategy, and where the variables to be trained are new in the trace themselves, nothing
    changes.

    Args:
        variables: What is to be trained: an optimizer may begin with their values.
    """
    if tf.executing_eagerly() or tf.distribute.has_strategy():
        yield
        return
    with tf.init_scope():
        is_ahead = tf.executing_eagerly() and all(
            bool(resource(variable).is_initialized()) for variable in variables
        )
    if not is_ahead:
        yield
        return
    with tf.init_scope(), tf.variable_creator_scope(_as_they_are):
        yield


def _as_they_are(create: Any, **arguments: Any) -> Any:
    return create(**{**arguments, "experimental_enable_variable_lifting": False})
