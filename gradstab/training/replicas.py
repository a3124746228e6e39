"""One step on all replicas of a strategy: each takes its share of the batch, weighted by its size.

Keras splits batches as the pipeline happens to, and averages the replicas alike, so that an example
in the smaller share counts for more. Here a batch of n examples is split as evenly as can be, and
the loss of a replica with m of them counts m/n: the sum is the gradient that one replica would get.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from gradstab._layers import all_layers
from gradstab._replicas import replica_index
from gradstab.keras_hooks.substitute import replaced_method
from gradstab.optimizers.model.forward_state import changed_by_forward_pass
from gradstab.optimizers.watching.find import bind

Step = Callable[[Any], dict[str, Any]]


def on_all_replicas(strategy: Any, step: Step, optimizer: Any) -> Step:
    """Return a step that takes a whole batch and gives every replica its share.

    Args:
        strategy: A `tf.distribute.Strategy`.
        step: Takes a batch and returns logs; called in a replica context.
        optimizer: The optimizer that `step` asks to scale its loss, or `None`.

    Returns:
        The step itself if there is one replica. Else one whose logs `mean_over_replicas` merges.
    """
    count = strategy.num_replicas_in_sync
    if count == 1:
        return step

    def run(batch: Any) -> dict[str, Any]:
        weights: dict[int, Any] = {}

        def on_replica() -> dict[str, Any]:
            place = replica_index()
            share, weights[place] = share_of(batch, place, count)
            return step(share)

        # Outside the replicas, whose threads share the optimizer.
        with _weighted_loss(optimizer, lambda: weights[replica_index()]):
            return strategy.run(on_replica)

    return run


def mean_over_replicas(strategy: Any, logs: dict[str, Any]) -> dict[str, Any]:
    """Return logs that a step of the user's own made, one value from those of all replicas."""
    if strategy.num_replicas_in_sync == 1:
        return logs
    return {name: strategy.reduce("MEAN", log, axis=None) for name, log in logs.items()}


def share_of(batch: Any, place: int, count: int) -> tuple[Any, Any | None]:
    """Return one replica's share of a batch, and what its mean loss has to be multiplied by.

    A batch with fewer examples than replicas goes whole to every replica.

    Args:
        batch: A structure of tensors with examples along the first axis.
        place: Which replica, from 0.
        count: How many replicas there are.

    Returns:
        The share, and its weight: a float32 scalar, or `None` where all shares are alike.
    """
    leaves = [leaf for leaf in keras.tree.flatten(batch) if leaf is not None]
    known = leaves[0].shape[0]
    if known is not None:
        if known < count:
            return batch, None
        start, end = known * place // count, known * (place + 1) // count
        weight = None if known % count == 0 else tf.constant((end - start) * count / known)
    else:
        size = tf.shape(leaves[0])[0]
        too_few = size < count
        start = tf.where(too_few, 0, size * place // count)
        end = tf.where(too_few, size, size * (place + 1) // count)
        fraction = tf.cast((end - start) * count, tf.float32) / tf.cast(size, tf.float32)
        weight = tf.where(too_few, 1.0, fraction)
    share = keras.tree.map_structure(lambda leaf: None if leaf is None else leaf[start:end], batch)
    return share, weight


def synchronize(model: Any) -> None:
    """Give all replicas the mean of what their forward passes changed: BatchNorm's statistics.

    Each replica keeps its own, and only the first one's would be saved.
    """
    strategy = model.distribute_strategy
    if strategy.num_replicas_in_sync == 1:
        return
    for variable in changed_by_forward_pass(list(all_layers(model))):
        if not variable.dtype.startswith("int"):
            own = strategy.run(tf.identity, args=(variable.value,))
            variable.assign(strategy.reduce("MEAN", own, axis=None))
    bind(model)


@contextlib.contextmanager
def _weighted_loss(optimizer: Any, weight: Callable[[], Any | None]) -> Iterator[None]:
    """Have the loss multiplied by a replica's weight where Keras' `train_step` has it scaled."""
    if optimizer is None:
        yield
        return
    scale_loss = optimizer.scale_loss

    def scaled(loss: Any) -> Any:
        factor = weight()
        return scale_loss(loss if factor is None else loss * tf.cast(factor, loss.dtype))

    with replaced_method(optimizer, "scale_loss", scaled):
        yield
