"""Conditions of the compiled step: one function out of several, the same one on all replicas.

Everything between the sum over the replicas (`step.reducing`) and the verdict is computed on every
replica from the same numbers, and so comes out the same on all; the verdict of the first then
decides, outside the replicas, whether all of them apply.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tensorflow as tf

from gradstab._replicas import num_replicas
from gradstab._variables import resource
from gradstab.keras_hooks.conditions import is_compiled_by_xla, kept_whole
from gradstab.keras_hooks.strategies import can_meet_while_tracing


def as_written(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep AutoGraph from rewriting a function, and what it calls, in a `tf.function`.

    Keras' own optimizers are exempt by name. Rewriting costs the first trace seconds.
    """
    converted: Callable[..., Any] = tf.autograph.experimental.do_not_convert(function)
    return converted


def either(
    condition: Any | None,
    if_true: Callable[[], None],
    if_false: Callable[[], None],
    written: Iterable[Any] = (),
) -> None:
    """Run one of two functions that write variables, the same one on all replicas.

    Args:
        condition: Boolean scalar tensor, the same on every replica, or `None` for "true".
        if_true: Writes variables, returns nothing.
        if_false: The same.
        written: As in `one_of`.
    """
    place = None if condition is None else tf.cast(condition, tf.int32)
    one_of(place, [if_true] if condition is None else [if_false, if_true], written=written)


def values_if(
    condition: Any, make: Callable[[], list[Any]], like: Sequence[Any], read: Iterable[Any] = ()
) -> list[Any]:
    """Return the tensors that a function gives if a condition holds, else some without meaning.

    Those have no entries, except in what XLA compiles, where they are zeros of the same shape.

    Args:
        condition: Boolean scalar tensor.
        make: Reads variables, and returns a list of tensors.
        like: Tensors or variables of their shapes and dtypes.
        read: All variables that it may read, where these are known. If they lie on one device, the
            condition costs less.
    """
    if tf.executing_eagerly() and not tf.is_symbolic_tensor(condition):
        return make() if condition else [tf.zeros((), each.dtype) for each in like]
    is_whole = is_compiled_by_xla()

    def nothing() -> list[Any]:
        shapes = [tuple(each.shape) if is_whole else (0,) * len(each.shape) for each in like]
        return [tf.zeros(shape, each.dtype) for shape, each in zip(shapes, like, strict=True)]

    values: list[Any] = list(tf.cond(condition, make, nothing))
    if values and num_replicas() == 1 and _on_one_device(read):
        kept_whole(values[0])
    return values


def one_of(
    place: Any | None,
    branches: Sequence[Callable[[], None]],
    around: contextlib.AbstractContextManager[Any] | None = None,
    written: Iterable[Any] = (),
) -> None:
    """Run one of several functions that write variables, the same one on all replicas.

    Args:
        place: Which one, an int32 scalar tensor, the same on every replica; `None` for the first.
        branches: Each writes variables and returns nothing.
        around: Held while they are traced. It is entered once, outside the replicas, whose threads
            would collide where it changes what they share.
        written: All variables that they may read or write, where these are known. If they lie on
            one device, the condition costs less.
    """
    around = around or contextlib.nullcontext()
    if num_replicas() == 1 or not can_meet_while_tracing():
        with around:
            _branch(place, branches, whole=_on_one_device(written))
        return

    def outside(strategy: Any, place: Any, branches: Any, around: Any) -> None:
        # A condition inside the replicas must not hold what lets them meet, as every optimizer's
        # update does; outside it may. Each replica brings functions of its own, all alike.
        first = strategy.experimental_local_results(place)[0]

        def on_all(function: Any) -> Callable[[], None]:
            def run() -> None:
                strategy.extended.call_for_each_replica(_call, args=(function,))

            return run

        with strategy.experimental_local_results(around)[0]:
            _branch(first, [on_all(branch) for branch in branches], whole=False)

    tf.distribute.get_replica_context().merge_call(outside, args=(place, tuple(branches), around))


def _branch(place: Any | None, branches: Sequence[Callable[[], None]], *, whole: bool) -> None:
    if place is None:
        branches[0]()
    elif tf.executing_eagerly() and not tf.is_symbolic_tensor(place):
        branches[int(place)]()
    else:
        # They return a number, by which the condition can be found afterwards.
        zero = _switch(place, [_then_zero(branch) for branch in branches])
        if whole:
            kept_whole(zero)


def _switch(place: Any, functions: Sequence[Callable[[], Any]]) -> Any:
    """Return what one of several functions gives.

    XLA, given a choice between several, would find out first whether the place is a constant, by
    interpreting, entry by entry, all that leads to it: for a transformer, minutes. Of a choice
    between two it does not ask.
    """
    if not is_compiled_by_xla():
        return tf.switch_case(place, functions)
    first, *others = functions
    if not others:
        return first()
    return tf.cond(place == 0, first, lambda: _switch(place - 1, others))


def _on_one_device(variables: Iterable[Any]) -> bool:
    return len({resource(variable).device for variable in variables}) == 1


def _then_zero(branch: Callable[[], None]) -> Callable[[], Any]:
    def run() -> Any:
        branch()
        return tf.constant(0)

    return run


def _call(function: Callable[[], None]) -> None:
    function()
