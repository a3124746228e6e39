"""Batches of rows, and training batches whose order is a function of seed and epoch.

Memory is read several batches at a time and cut up afterwards: gathering rows batch by batch
costs up to twice as much, and shuffling single examples first fills a buffer of all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import tensorflow as tf

Fetch = Callable[[Any], tuple[Any, Any]]
"""From row numbers `(k,)` to float32 inputs `(k, ...)` and int64 labels `(k,)`, in a graph."""

ForEpoch = Callable[[Any], Any]
"""From the number of an epoch (an int or a scalar tensor) to the dataset of its batches."""

# A block should fit a processor's cache together with the batches cut from it.
_BLOCK_BYTES = 2**20
_MAX_BATCHES_PER_BLOCK = 32


@dataclass(frozen=True)
class Source:
    """Examples that can be fetched by their row number, in any order.

    Attributes:
        fetch: Returns the examples of some rows.
        labels: The class of each row, `(n,)`.
        class_names: A name for each class.
        input_shape: Shape of one input.
        pixel_max: Largest value that an input can have, or None where only the data can tell.
        num_test: How many rows at the end are a test set of its own.
        slow: Whether fetching takes so long that batches should be made in parallel.
    """

    fetch: Fetch
    labels: npt.NDArray[Any]
    class_names: tuple[str, ...]
    input_shape: tuple[int, ...]
    pixel_max: float | None
    num_test: int = 0
    slow: bool = False


def array_source(
    inputs: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    class_names: tuple[str, ...],
    pixel_max: float | None,
    num_test: int = 0,
) -> Source:
    """Return the rows of two arrays, which are kept in their own type and leave as float32."""
    # On the host: a GPU would only be asked for rows that travel back to the input pipeline.
    with tf.device("CPU:0"):
        all_inputs = tf.constant(inputs)
        all_labels = tf.constant(labels, tf.int64)

    def fetch(rows: Any) -> tuple[Any, Any]:
        return tf.cast(tf.gather(all_inputs, rows), tf.float32), tf.gather(all_labels, rows)

    return Source(fetch, labels, class_names, inputs.shape[1:], pixel_max, num_test)


def in_order(source: Source, rows: npt.NDArray[Any], batch_size: int) -> Any:
    """Return the batches of `rows` as they stand."""
    with tf.device("CPU:0"):
        return _batches(source, tf.constant(rows), len(rows), batch_size)


def by_epoch(
    source: Source, rows: npt.NDArray[Any], batch_size: int, *, seed: int, shuffle: bool
) -> ForEpoch:
    """Return the function from an epoch to its batches, `rows` shuffled by `seed` and epoch."""
    with tf.device("CPU:0"):
        all_rows = tf.constant(rows)

    # Compiled, since building a pipeline anew for every epoch takes longer than a short epoch.
    @tf.function(input_signature=[tf.TensorSpec([], tf.int64)])
    def build(epoch: Any) -> Any:
        with tf.device("CPU:0"):
            order = all_rows
            if shuffle:
                order = tf.random.experimental.stateless_shuffle(
                    all_rows, seed=tf.stack([tf.constant(seed, tf.int64), epoch]), alg="philox"
                )
            return _batches(source, order, len(rows), batch_size)

    return lambda epoch: build(tf.cast(epoch, tf.int64))


def reshuffled(for_epoch: ForEpoch) -> Any:
    """Return a dataset that yields epoch 0 when it is first iterated, epoch 1 the next time.

    Its attribute `for_epoch` is the function given, for loops that count epochs themselves.
    """
    with tf.device("CPU:0"):
        next_epoch = tf.Variable(0, dtype=tf.int64, trainable=False, name="next_epoch")
        num_batches = for_epoch(0).cardinality()

    def advance(_: Any) -> Any:
        return next_epoch.assign_add(1) - 1

    dataset = tf.data.Dataset.from_tensors(0).map(advance).flat_map(for_epoch)
    if num_batches >= 0:
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(num_batches))
    dataset = dataset.prefetch(2)
    dataset.for_epoch = for_epoch
    return dataset


def _batches(source: Source, rows: Any, num_rows: int, batch_size: int) -> Any:
    num_batches = -(-num_rows // batch_size)
    batches_per_block = 1
    if not source.slow:
        batch_bytes = 4 * batch_size * math.prod(source.input_shape)
        fitting = _BLOCK_BYTES // batch_bytes
        batches_per_block = min(max(fitting, 1), _MAX_BATCHES_PER_BLOCK, num_batches)
    size = batch_size * batches_per_block

    def block(number: Any) -> tuple[Any, Any]:
        return source.fetch(rows[number * size : (number + 1) * size])

    dataset = tf.data.Dataset.range(-(-num_rows // size)).map(
        block, num_parallel_calls=tf.data.AUTOTUNE if source.slow else None
    )
    if batches_per_block > 1:
        dataset = dataset.rebatch(batch_size)
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(num_batches))
    return dataset.prefetch(tf.data.AUTOTUNE if source.slow else 2)
