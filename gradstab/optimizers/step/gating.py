"""Applies a step or leaves everything as it was, without a condition round the update.

A condition hands every variable and gradient to the function that it calls, and starts none of its
work before the verdict. Where variables are many and small, that takes a fifth of a whole step.
Here the update is computed in any case, and its assignments alone depend on the verdict. In a plain
graph they wait for a tensor that is dead if the step is refused: what depends on a dead tensor is
not run (`tf.raw_ops.Switch`), so that nothing is computed or copied for it. XLA knows no such
thing; there each assignment writes either the new value or what leaves the variable as it was, bit
by bit, within the update's own loop.

Keras' own optimizers make all of their assignments in methods that are meant to be replaced, and
only for those that do is this used. Weight decay, which they take off beforehand, is done here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import tensorflow as tf

from gradstab._nesting import parts
from gradstab._replicas import num_replicas
from gradstab._variables import is_overwritten, resource
from gradstab.functional._backend import select
from gradstab.keras_hooks.conditions import is_compiled_by_xla
from gradstab.keras_hooks.one_step import assigning
from gradstab.optimizers.compiled.branches import either
from gradstab.optimizers.step.fused import with_fused_updates
from gradstab.optimizers.traits import traits_of

# What a person may have given an instance a method of its own for.
_METHODS: Final = frozenset(
    ("apply", "apply_gradients", "assign", "assign_add", "assign_sub", "update_step")
)


def can_gate(optimizer: Any, variables: Sequence[Any], gradients: Sequence[Any]) -> bool:
    """Whether the step that is being traced may be applied by `gated`.

    Args:
        optimizer: The inner optimizer, built.
        variables: The variables of the step.
        gradients: Their gradients.
    """
    return (
        num_replicas() == 1
        and not tf.executing_eagerly()
        and all(map(_is_open, parts(optimizer)))
        and not any(isinstance(gradient, tf.IndexedSlices) for gradient in gradients)
        and not any(
            is_overwritten(variable) or getattr(variable, "constraint", None) is not None
            for variable in variables
        )
    )


def _is_open(optimizer: Any) -> bool:
    return (
        traits_of(optimizer).writes_by_assign
        and not optimizer.use_ema
        and not optimizer.gradient_accumulation_steps
        and not set(vars(optimizer)) & _METHODS
    )


@contextlib.contextmanager
def gated(optimizer: Any, accept: Any) -> Iterator[None]:
    """Have what the optimizer assigns in this block take effect only if the step is accepted.

    Args:
        optimizer: The inner optimizer.
        accept: Boolean scalar tensor.
    """
    writer = _Choosing(accept) if is_compiled_by_xla() else _Waiting(accept)

    def assign(variable: Any, value: Any) -> None:
        variable = resource(variable)
        writer.assign(variable, tf.cast(value, variable.dtype))

    def adding(sign: int) -> Callable[[Any, Any], None]:
        def add(variable: Any, value: Any) -> None:
            variable = resource(variable)
            writer.add(variable, tf.cast(value, variable.dtype), sign)

        return add

    with contextlib.ExitStack() as stack:
        for part in {id(each): each for each in (optimizer, *parts(optimizer))}.values():
            stack.enter_context(assigning(part, assign, adding(1), adding(-1), accept))
            if isinstance(writer, _Waiting):
                stack.enter_context(with_fused_updates(part, writer.waiting))
        yield
    writer.end()


def assign_if(condition: Any, variables: Sequence[Any], values: Sequence[Any]) -> None:
    """Assign values where a condition holds, at next to no cost where it does not.

    Args:
        condition: Boolean scalar tensor, the same on every replica.
        variables: Keras variables.
        values: Their values.
    """
    if not variables:
        return
    if tf.executing_eagerly() or num_replicas() > 1:

        def assign() -> None:
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)

        either(condition, assign, lambda: None)
        return
    writer = _Choosing(condition) if is_compiled_by_xla() else _Waiting(condition)
    for variable, value in zip(variables, values, strict=True):
        variable = resource(variable)
        writer.assign(variable, tf.cast(value, variable.dtype))
    writer.end()


class _Waiting:
    """Writes that wait for a tensor, and are left out where that is dead."""

    def __init__(self, accept: Any) -> None:
        refused, accepted = tf.raw_ops.Switch(data=tf.constant(0), pred=accept)
        self._refused, self._accepted = tf.identity(refused), tf.identity(accepted)

    def waiting(self) -> contextlib.AbstractContextManager[None]:
        wait: contextlib.AbstractContextManager[None] = tf.control_dependencies([self._accepted])
        return wait

    def assign(self, variable: Any, value: Any) -> None:
        with self.waiting():
            variable.assign(value, read_value=False)  # By default it is read again, for nobody.

    def add(self, variable: Any, value: Any, sign: int) -> None:
        with self.waiting():
            (variable.assign_add if sign > 0 else variable.assign_sub)(value, read_value=False)

    def end(self) -> None:
        # Alive either way: what reads the variables afterwards, or ends the function, waits for it
        # and no longer for the writes themselves.
        tf.raw_ops.Merge(inputs=[self._refused, self._accepted])


class _Choosing:
    """Writes that are always made, and change nothing if the step is refused."""

    def __init__(self, accept: Any) -> None:
        self._accept = accept
        self._nothings: dict[tuple[Any, ...], Any] = {}

    def assign(self, variable: Any, value: Any) -> None:
        old = tf.convert_to_tensor(variable)
        variable.assign(select(self._accept, value, old), read_value=False)

    def add(self, variable: Any, value: Any, sign: int) -> None:
        # Adding -0 and subtracting 0 change nothing, and leave -0 as it is.
        key = (*value.shape, value.dtype, sign)
        if key not in self._nothings:
            self._nothings[key] = tf.constant(-sign * 0.0, value.dtype, value.shape)
        chosen = select(self._accept, value, self._nothings[key])
        (variable.assign_add if sign > 0 else variable.assign_sub)(chosen, read_value=False)

    def end(self) -> None:
        """Nothing to do: no write is left out."""
