"""Batches that Python code makes: a `keras.utils.PyDataset`, or a generator."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
import tensorflow as tf


def is_generated(data: Any) -> bool:
    """Whether data is a `PyDataset` or an iterator, such as a generator."""
    return isinstance(data, keras.utils.PyDataset | Iterator)


def as_pipeline(name: str, data: Any, *, seed: int | None) -> Any:
    """Return a `tf.data` pipeline of the batches.

    That of a `PyDataset` can be opened for each epoch, with its batches in an order that is a
    function of seed and epoch. That of a generator can be gone through once.

    Args:
        name: The argument that `data` came in as, for messages.
        data: A `PyDataset` or an iterator.
        seed: Shuffles the batches of a `PyDataset`; None keeps their order.

    Raises:
        ValueError: If there is no batch, or if a generator is the validation data, which is gone
            through after each epoch.
    """
    if isinstance(data, keras.utils.PyDataset):
        return _of_py_dataset(name, data, seed)
    if name != "train_data":
        raise ValueError(
            f"`{name}` is needed after every epoch, and a generator can be gone through once. "
            f"Received: {name}={data!r:.100}. Pass arrays, a tf.data.Dataset or a PyDataset"
        )
    looked_at = [_plain(batch) for batch in itertools.islice(data, 2)]
    if not looked_at:
        raise ValueError(f"`{name}` must yield at least one batch. Received: none")
    batches = itertools.chain(looked_at, map(_plain, data))
    return tf.data.Dataset.from_generator(lambda: batches, output_signature=_spec(looked_at))


def _of_py_dataset(name: str, data: Any, seed: int | None) -> Any:
    count = data.num_batches
    if count == 0:
        raise ValueError(f"`{name}` must yield at least one batch. Received: none")
    spec = _spec([_plain(data[place]) for place in range(2 if count is None else min(count, 2))])

    def for_epoch(epoch: int) -> Any:
        def batches() -> Iterator[Any]:
            order: Iterable[int] = itertools.count() if count is None else range(count)
            if seed is not None and count is not None:
                order = np.random.default_rng([seed, epoch]).permutation(count).tolist()
            yield from map(_plain, _in_order(data, order))

        pipeline = tf.data.Dataset.from_generator(batches, output_signature=spec)
        length = tf.data.INFINITE_CARDINALITY if count is None else count
        pipeline = pipeline.apply(tf.data.experimental.assert_cardinality(length))
        return pipeline.prefetch(data.max_queue_size)

    pipeline = for_epoch(0)
    pipeline.for_epoch = for_epoch
    # Not when the batches end: they are made ahead, and some to be looked at only.
    pipeline.between_epochs = data.on_epoch_end
    return pipeline


def _in_order(data: Any, order: Iterable[int]) -> Iterator[Any]:
    """Yield batches in order, made by as many threads as the data set asks for."""
    if data.workers <= 1:
        yield from (data[place] for place in order)
        return
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(data.workers) as pool:
        for place in order:
            waiting.append(pool.submit(data.__getitem__, place))
            if len(waiting) > data.workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _plain(batch: Any) -> Any:
    """Return a batch as `tf.data` takes it: tuples for lists, arrays, nothing in place of None."""
    if not isinstance(batch, tuple | list):
        return _structure(batch)
    parts = list(batch)
    while parts and parts[-1] is None:
        parts.pop()
    return tuple(_structure(part) for part in parts)


def _structure(part: Any) -> Any:
    if isinstance(part, dict):
        return {key: _structure(value) for key, value in part.items()}
    if isinstance(part, tuple | list) and any(hasattr(each, "shape") for each in part):
        return tuple(_structure(each) for each in part)
    array = np.asarray(part)
    if np.issubdtype(array.dtype, np.floating):
        array = array.astype(keras.config.floatx(), copy=False)
    return array


def _spec(batches: list[Any]) -> Any:
    """Return the structure of batches, whose sizes may differ where those looked at do."""

    def of(*arrays: Any) -> Any:
        first = arrays[0]
        shape = [
            size if all(array.shape[axis] == size for array in arrays) else None
            for axis, size in enumerate(first.shape)
        ]
        return tf.TensorSpec([None, *shape[1:]] if shape else [], first.dtype)

    return keras.tree.map_structure(of, *batches)
