"""What needs TensorFlow: replicas, and applying under a condition on all of them.

Everything between the sum over the replicas (`reducing`) and the verdict is computed on every
replica from the same numbers, and so comes out the same on all; the verdict of the first then
decides, outside the replicas, whether all of them apply.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from gradstab.functional._backend import is_compiled_by_xla, kept_whole, value_of
from gradstab.optimizers.inner import resource


def num_replicas() -> int:
    """Return the number of replicas that train together in the present scope."""
    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def replica_index() -> int:
    """Return which replica of this process is being traced or run, from 0."""
    context = tf.distribute.get_replica_context()
    index = None if context is None else tf.get_static_value(context.replica_id_in_sync_group)
    return 0 if index is None else int(index)


def is_chief(strategy: Any) -> bool:
    """Whether this process is the one of its workers that writes files."""
    resolver = getattr(strategy, "cluster_resolver", None)
    tasks = {} if resolver is None else resolver.cluster_spec().as_dict()
    if resolver is None or not tasks:
        return True
    return bool(resolver.task_type == "chief" or ("chief" not in tasks and resolver.task_id == 0))


def check_strategy() -> None:
    """Raise under a strategy whose replicas do not step together.

    Raises:
        ValueError: Names the strategy.
    """
    strategy = tf.distribute.get_strategy()
    if isinstance(strategy, tf.distribute.ParameterServerStrategy):
        raise ValueError(
            "StabilizedOptimizer needs replicas that step together, so that one verdict holds for "
            f"all. Received: {type(strategy).__name__}, whose workers step on their own. Use "
            "tf.distribute.MirroredStrategy or MultiWorkerMirroredStrategy"
        )


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
    if (
        num_replicas() == 1
        # So it is where XLA compiles for several GPUs; the replicas need not meet there.
        or tf.__internal__.distribute.strategy_supports_no_merge_call()
    ):
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


def write_row(variable: Any, place: Any, row: Any) -> None:
    """Write one row of a variable in place; assigning would write all of them.

    Args:
        variable: A `keras.Variable` of shape (rows, columns).
        place: Which row, an integer scalar tensor.
        row: Its new values.
    """
    variable.value.scatter_update(tf.IndexedSlices(row, tf.convert_to_tensor(place)))


def gather_row(variable: Any, place: Any) -> Any:
    """Return one row of a variable without reading the others.

    Args:
        variable: A `keras.Variable` of shape (rows, columns).
        place: Which row, an integer scalar tensor.
    """
    return tf.gather(variable.value, place)


def to_host(variables: Sequence[Any]) -> list[np.ndarray[Any, Any]]:
    """Return the values of Keras variables as arrays, all fetched at once.

    Where there is an accelerator they come as one vector, in one transfer; in the host's own memory
    there is nothing to save by that.
    """
    if not tf.config.list_logical_devices("GPU"):
        return [value_of(variable).numpy() for variable in variables]
    flat = [tf.reshape(tf.cast(value_of(variable), tf.float64), (-1,)) for variable in variables]
    parts = np.split(tf.concat(flat, 0).numpy(), np.cumsum([int(each.shape[0]) for each in flat]))
    return [
        part.reshape(variable.shape).astype(variable.dtype)
        for part, variable in zip(parts, variables, strict=False)
    ]


def usable_here(tensor: Any | None) -> Any | None:
    """Return a scalar tensor if the function that is being traced made it, else `None`.

    The loss that a trainer showed in an earlier trace must not leak into this one.
    """
    if tensor is None or not tf.is_tensor(tensor) or tensor.shape.rank != 0:
        return None
    if tf.executing_eagerly():
        return None if tf.is_symbolic_tensor(tensor) else tensor
    graph = tf.compat.v1.get_default_graph()
    while graph is not None:
        if getattr(tensor, "graph", None) is graph:
            return tensor
        graph = getattr(graph, "outer_graph", None)  # A branch may use what is outside of it.
    return None
