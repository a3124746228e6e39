"""Sums over replicas in the backward pass of a layer: TensorFlow only."""

from __future__ import annotations

from typing import Any

import keras


def sum_over_replicas(tensors: list[Any]) -> list[Any]:
    """Return the sums over all replicas of a strategy; the tensors as they are without one."""
    if keras.backend.backend() != "tensorflow" or not tensors:
        return tensors
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return tensors
    return list(context.all_reduce(tf.distribute.ReduceOp.SUM, tensors))
