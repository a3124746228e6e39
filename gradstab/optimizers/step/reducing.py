"""Sums gradients over the replicas, before anything is measured, clipped or judged.

Keras clips each replica's share of the gradient and sums afterwards, so that the bound grows with
the number of replicas. Here the sum comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from gradstab._replicas import num_replicas, sum_over_replicas
from gradstab.keras_hooks.strategies import can_meet_while_tracing
from gradstab.optimizers.compiled.sparse import is_sparse, map_values


def sum_gradients(
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
        sent.append(scalar)
    received = iter(sum_over_replicas(sent))
    sums = [
        None if share is None else map_values(_to(share.dtype), next(received)) for share in shares
    ]
    return sums, None if scalar is None else next(received)


def _widen(values: Any) -> Any:
    return tf.cast(values, tf.float32) if values.dtype.size < 4 else values


def _to(dtype: Any) -> Callable[[Any], Any]:
    return lambda values: tf.cast(values, dtype)


def _same_kinds(gradients: Sequence[Any], shapes: Sequence[Any], context: Any) -> list[Any]:
    """Fill in zeros where another replica has a gradient, and make dense what is dense elsewhere.

    Each replica is traced by itself, and a reduction needs the same structure on all. What kinds
    the others have is found out while tracing; nothing of it enters the graph.
    """
    if not can_meet_while_tracing():
        return list(gradients)
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


def as_shares(gradients: Sequence[Any]) -> list[Any]:
    """Divide what was summed by the number of replicas, for optimizers that will sum it again."""
    count = num_replicas()
    return [
        None if gradient is None else map_values(lambda values: values / count, gradient)
        for gradient in gradients
    ]
