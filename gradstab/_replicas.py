"""Replicas of a `tf.distribute` strategy: how many, which one, and sums over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras


def num_replicas() -> int:
    """Return the number of replicas that train together in the present scope."""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def replica_index() -> int:
    """Return which replica of this process is being traced or run, from 0."""
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    index = None if context is None else tf.get_static_value(context.replica_id_in_sync_group)
    return 0 if index is None else int(index)


def is_chief(strategy: Any) -> bool:
    """Whether this process is the one of its workers that writes files."""
    resolver = getattr(strategy, "cluster_resolver", None)
    tasks = _tasks(resolver)
    if resolver is None or not tasks:
        return True
    return bool(resolver.task_type == "chief" or ("chief" not in tasks and resolver.task_id == 0))


def strategy_of(variable: Any) -> Any:
    """Return the strategy under which a variable was made."""
    import tensorflow as tf

    value = variable.value if isinstance(variable, keras.Variable) else variable
    return getattr(value, "distribute_strategy", None) or tf.distribute.get_strategy()


def sum_over_replicas(tensors: Sequence[Any]) -> list[Any]:
    """Return the sums of tensors over the replicas, of one all-reduce.

    Args:
        tensors: This replica's tensors or `tf.IndexedSlices`, of one kind on all replicas. Where
            there is one replica, or none is being traced, they are returned as they are.
    """
    if num_replicas() == 1 or not tensors:
        return list(tensors)
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None:
        return list(tensors)
    # Identity, since TensorFlow takes one tensor on two replicas for a single share.
    sent = [t if isinstance(t, tf.IndexedSlices) else tf.identity(t) for t in tensors]
    return list(context.all_reduce(tf.distribute.ReduceOp.SUM, sent))


def count_workers(strategy: Any) -> int:
    """Return how many processes train together under a strategy."""
    tasks = _tasks(getattr(strategy, "cluster_resolver", None))
    return max(1, sum(len(tasks.get(job, ())) for job in ("chief", "worker")))


def _tasks(resolver: Any) -> dict[str, Any]:
    return {} if resolver is None else dict(resolver.cluster_spec().as_dict())
