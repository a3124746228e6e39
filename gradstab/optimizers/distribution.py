"""What needs TensorFlow: reducing over replicas, and applying under a condition on all of them.

Keras clips each replica's share of the gradient and sums afterwards, so that the bound grows with
the number of replicas. Here the sum comes first. Everything between it and the verdict is computed
on every replica from the same numbers, and so comes out the same on all; the verdict of the first
then decides, outside the replicas, whether all of them apply.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from gradstab._substitute import replaced_method
from gradstab.functional._backend import kept_whole, value_of
from gradstab.optimizers.inner import resource
from gradstab.optimizers.sparse import is_sparse, map_values

# Keras' optimizers sum the gradients over the replicas in this private method, once more after us.
_INNER_REDUCTION = "_all_reduce_sum_gradients"


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


# Reducing ---------------------------------------------------------------------------------------


def sum_over_replicas(
    gradients: Sequence[Any], shapes: Sequence[Any], scalar: Any | None
) -> tuple[list[Any], Any | None]:
    """Sum gradients, and one scalar with them, over all replicas.

    All that is dense goes in one all-reduce. What is `None` on some replicas counts as zero there.

    Args:
        gradients: Tensors, `tf.IndexedSlices` or `None`: this replica's share.
        shapes: Shapes of their variables.
        scalar: A float32 scalar tensor, such as this replica's share of the loss, or `None`.

    Returns:
        The sums, and the sum of the scalars, in the dtypes in which they came.

    Raises:
        ValueError: If it is called outside the replicas.
    """
    if num_replicas() == 1:
        return list(gradients), scalar
    context = tf.distribute.get_replica_context()
    if context is None:
        raise ValueError(
            "`apply` must be called in a replica context, where each replica has its share of the "
            "gradient. Call it in a function that is passed to `strategy.run`"
        )
    tensors = [g if g is None or is_sparse(g) else tf.convert_to_tensor(g) for g in gradients]
    shares = _same_kinds(tensors, shapes, context)
    # Half precision is summed in float32: the sum may need its range, and one dtype travels as one.
    sent = [map_values(_widen, share) for share in shares if share is not None]
    if scalar is not None:
        sent.append(tf.identity(scalar))
    received = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, sent) if sent else [])
    sums = [
        None if share is None else map_values(_to(share.dtype), next(received)) for share in shares
    ]
    return sums, None if scalar is None else next(received)


def _widen(values: Any) -> Any:
    # Identity, since TensorFlow takes one tensor on two replicas for a single share.
    return tf.cast(values, tf.float32) if values.dtype.size < 4 else tf.identity(values)


def _to(dtype: Any) -> Callable[[Any], Any]:
    return lambda values: tf.cast(values, dtype)


def _same_kinds(gradients: Sequence[Any], shapes: Sequence[Any], context: Any) -> list[Any]:
    """Fill in zeros where another replica has a gradient, and make dense what is dense elsewhere.

    Each replica is traced by itself, and a reduction needs the same structure on all. What kinds
    the others have is found out while tracing; nothing of it enters the graph.
    """
    if tf.__internal__.distribute.strategy_supports_no_merge_call():
        return list(gradients)  # XLA on several GPUs, where the replicas can't meet while tracing.
    of_all = context.merge_call(_of_all_replicas, args=(tuple(map(_kind, gradients)),))
    return [_of_kind(*each) for each in zip(gradients, shapes, of_all, strict=True)]


def _kind(gradient: Any) -> str:
    """Name what a gradient is; of the names on several replicas, the last in order serves all."""
    if gradient is None:
        return ""
    if is_sparse(gradient):
        return f"sparse {gradient.values.dtype.name} {gradient.indices.dtype.name}"
    return f"tensor {gradient.dtype.name}"


def _of_all_replicas(strategy: Any, kinds: Any) -> tuple[str, ...]:
    return tuple(max(strategy.experimental_local_results(kind)) for kind in kinds)


def _of_kind(gradient: Any, shape: Any, name: str) -> Any:
    if not name:
        return None
    kind, dtype, *of_indices = name.split()
    if gradient is not None:
        return tf.convert_to_tensor(gradient) if kind == "tensor" else gradient
    if kind == "tensor":
        return tf.zeros(shape, dtype)
    row = tf.zeros((1, *shape[1:]), dtype)
    return tf.IndexedSlices(row, tf.zeros((1,), of_indices[0]), tf.constant(shape, of_indices[0]))


@contextlib.contextmanager
def without_reduction(optimizers: Iterable[Any]) -> Iterator[None]:
    """Keep Keras' optimizers from summing over the replicas what is summed already."""
    with contextlib.ExitStack() as stack:
        for optimizer in optimizers:
            stack.enter_context(replaced_method(optimizer, _INNER_REDUCTION, list))
        yield


def reduces_once(optimizers: Iterable[Any]) -> bool:
    """Whether the reduction inside the optimizers can be switched off in this version of Keras."""
    return all(hasattr(type(optimizer), _INNER_REDUCTION) for optimizer in optimizers)


def as_shares(gradients: Sequence[Any]) -> list[Any]:
    """Divide what was summed by the number of replicas, for optimizers that will sum it again."""
    count = num_replicas()
    return [
        None if gradient is None else map_values(lambda values: values / count, gradient)
        for gradient in gradients
    ]


# Applying ---------------------------------------------------------------------------------------


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
        zero = tf.switch_case(place, [_then_zero(branch) for branch in branches])
        if whole:
            kept_whole(zero)


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
