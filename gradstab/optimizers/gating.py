"""Applies a step or leaves everything as it was, without a condition round the update.

A condition hands every variable and gradient to the function that it calls, and starts none of its
work before the verdict. Where variables are many and small, that takes a fifth of a whole step.
Here the update is computed in any case, and each of its assignments writes either the new value or
what leaves the variable as it was, bit by bit. Keras' own optimizers make all of their assignments
in methods that are meant to be replaced, and only for those that do is this used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf

from gradstab.functional._backend import is_taken_apart, select
from gradstab.optimizers import distribution, substitute
from gradstab.optimizers.inner import ReadOnce, is_overwritten, parts, resource

# Optimizers of which every assignment goes through `assign`, `assign_add` or `assign_sub`.
_OPEN: Final = frozenset(
    (
        keras.optimizers.SGD,
        keras.optimizers.Adam,
        keras.optimizers.AdamW,
        keras.optimizers.RMSprop,
        keras.optimizers.Adagrad,
        keras.optimizers.Adadelta,
        keras.optimizers.Adamax,
    )
)
# Numbers of entries, in the mean and of one variable, from which on a further pass over memory
# costs more than a condition.
_LARGE_MEAN: Final = 65_536
_LARGE: Final = 262_144


def can_gate(optimizer: Any, variables: Sequence[Any], gradients: Sequence[Any]) -> bool:
    """Whether the step that is being traced may be applied by `gated`, and gains from it.

    Args:
        optimizer: The inner optimizer, built.
        variables: The variables of the step.
        gradients: Their gradients.
    """
    return (
        distribution.num_replicas() == 1
        and not tf.executing_eagerly()
        and all(map(_is_open, parts(optimizer)))
        and not any(isinstance(gradient, tf.IndexedSlices) for gradient in gradients)
        and not any(
            is_overwritten(variable) or getattr(variable, "constraint", None) is not None
            for variable in variables
        )
        and (_are_small(variables) or _in_xla())
    )


def _are_small(variables: Sequence[Any]) -> bool:
    sizes = [int(np.prod(variable.shape)) for variable in variables]
    return sum(sizes) < _LARGE_MEAN * len(sizes) and max(sizes) < _LARGE


def _is_open(optimizer: Any) -> bool:
    return (
        type(optimizer) in _OPEN
        and not optimizer.use_ema
        and not optimizer.weight_decay
        and not optimizer.gradient_accumulation_steps
        and not set(vars(optimizer)) & {"assign", "assign_add", "assign_sub", "update_step"}
    )


def _in_xla() -> bool:
    """Whether XLA compiles what is being traced.

    It makes the choice within the update's own loop, at no cost, while a condition round the update
    takes it minutes to compile. No public function tells, but conditions are marked differently
    there.
    """
    probe = tf.cond(tf.constant(True), lambda: tf.constant(0), lambda: tf.constant(1))
    return not is_taken_apart(probe)


@contextlib.contextmanager
def gated(optimizer: Any, accept: Any, updates: dict[int, Any]) -> Iterator[None]:
    """Have what the optimizer assigns in this block take effect only if the step is accepted.

    Args:
        optimizer: The inner optimizer.
        accept: Boolean scalar tensor.
        updates: Takes the change of each variable that is trained, by the `id` of its resource.
    """
    trained = {id(resource(v)) for part in parts(optimizer) for v in part._trainable_variables}
    nothings: dict[tuple[Any, ...], Any] = {}

    def nothing(value: Any, sign: float) -> Any:
        """Return zeros that leave what they are added to as it is, -0 included."""
        key = (*value.shape, value.dtype, sign)
        if key not in nothings:
            nothings[key] = tf.constant(sign * 0.0, value.dtype, value.shape)
        return nothings[key]

    def assign(variable: Any, value: Any) -> None:
        variable = resource(variable)
        old = tf.convert_to_tensor(variable)
        new = select(accept, tf.cast(value, variable.dtype), old)
        variable.assign(new, read_value=False)  # By default it is read again, for nobody.
        if id(variable) in trained:
            updates[id(variable)] = new - old

    def adding(sign: float) -> Callable[[Any, Any], None]:
        def add(variable: Any, value: Any) -> None:
            variable = resource(variable)
            value = tf.cast(value, variable.dtype)
            # Adding -0 and subtracting 0 change nothing.
            chosen = select(accept, value, nothing(value, -sign))
            write = variable.assign_add if sign > 0 else variable.assign_sub
            write(chosen, read_value=False)
            if id(variable) in trained:
                updates[id(variable)] = chosen if sign > 0 else -chosen

        return add

    with contextlib.ExitStack() as stack:
        for part in {id(each): each for each in (optimizer, *parts(optimizer))}.values():
            stack.enter_context(substitute.method(part, "assign", assign))
            stack.enter_context(substitute.method(part, "assign_add", adding(1.0)))
            stack.enter_context(substitute.method(part, "assign_sub", adding(-1.0)))
            count = vars(part)["_iterations"]
            kept = ReadOnce(count, accept)
            stack.enter_context(substitute.untracked(part, "_iterations", kept))
        yield
