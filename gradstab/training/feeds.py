"""What an epoch is fed from: arrays held on the device, or a `tf.data` pipeline.

Both give the compiled loop the same two things: an epoch to run steps of, and one batch's
structure. The order of the data is a function of seed and epoch, so that a resumed run sees what
the uninterrupted one does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from gradstab.training.fingerprint import fingerprint_of
from gradstab.training.strategy import StepLoop, batch_spec

_HOW_TO_FEED = (
    "Pass a tf.data.Dataset of batches, or a tuple of arrays (x, y) or (x, y, sample_weight); "
    "wrap a generator or a PyDataset in tf.data.Dataset.from_generator"
)


class Epoch(Protocol):
    """One pass over the data, taken in pieces."""

    def trace(self, loop: StepLoop) -> None:
        """Make `loop` trace its function for these batches, and run no step."""
        ...

    def run(self, loop: StepLoop, count: int) -> tuple[int, dict[str, Any]]:
        """Run up to `count` steps; return how many there were (0 at the end) and the logs."""
        ...


class Feed(Protocol):
    """Data that can be opened anew for every epoch."""

    steps: int | None

    def open(self, epoch: int) -> Epoch:
        """Return the pass over the data that belongs to `epoch`."""
        ...

    def rehearsal(self) -> tuple[Epoch, int]:
        """Return batches to time steps on, without using up any, and how many in a row."""
        ...

    def signature(self) -> Any:
        """Return the structure of one whole batch."""
        ...

    def examples(self) -> Any:
        """Return some batch, without using it up; `None` where none can be had."""
        ...

    def fingerprint(self) -> str | None:
        """Return what tells these data from others, or `None` where nothing does."""
        ...


def make_feed(
    name: str,
    data: Any,
    *,
    batch_size: int,
    steps_per_epoch: int | None = None,
    seed: int | None = None,
    first_epoch: int = 0,
) -> ArrayFeed | DatasetFeed:
    """Return the feed for `data`, or refuse it by its argument's `name`.

    Args:
        name: The argument that `data` came in as, for messages.
        data: A `tf.data.Dataset` of batches, or arrays `(x, y)` or `(x, y, sample_weight)`.
        batch_size: Examples per step, for arrays.
        steps_per_epoch: Cuts a pipeline into epochs of that many batches, repeating it as needed.
        seed: Shuffles arrays by seed and epoch; None keeps their order.
        first_epoch: The epoch that is opened first.
    """
    if isinstance(data, tf.data.Dataset):
        return DatasetFeed(name, data, steps_per_epoch, first_epoch)
    if steps_per_epoch is not None:
        raise ValueError(
            "`steps_per_epoch` goes with a tf.data.Dataset; an epoch of arrays is one pass over "
            f"them. Received: steps_per_epoch={steps_per_epoch} with `{name}` of arrays. Leave "
            "`steps_per_epoch` out"
        )
    if not isinstance(data, tuple) or len(data) not in (2, 3):
        shown = f"a {type(data).__name__}" + (
            f" of length {len(data)}" if isinstance(data, tuple) else ""
        )
        raise TypeError(f"`{name}` is not data to train on. Received: {shown}. {_HOW_TO_FEED}")
    return ArrayFeed(name, data, batch_size, seed)


class ArrayFeed:
    """Arrays that lie on the device; a step gathers its rows there."""

    def __init__(self, name: str, arrays: Any, batch_size: int, seed: int | None) -> None:
        leaves = keras.tree.flatten(tuple(part for part in arrays if part is not None))
        for leaf in leaves:
            if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype") or not len(leaf.shape):
                raise TypeError(
                    f"`{name}` must hold NumPy arrays or tensors with examples along the first "
                    f"axis. Received: a {type(leaf).__name__}. {_HOW_TO_FEED}"
                )
        lengths = sorted({int(leaf.shape[0]) for leaf in leaves})
        if len(lengths) > 1:
            raise ValueError(
                f"The arrays of `{name}` must hold the same number of examples. Received: lengths "
                f"{', '.join(map(str, lengths))}"
            )
        if not lengths or lengths[0] == 0:
            raise ValueError(f"`{name}` must hold at least one example. Received: no examples")
        self.num_examples = lengths[0]
        self.batch_size = min(batch_size, self.num_examples)
        self.steps: int | None = math.ceil(self.num_examples / self.batch_size)
        self._seed = seed
        self._arrays = keras.tree.map_structure(
            _as_tensor, arrays if arrays[-1] is not None else arrays[:-1]
        )

    def open(self, epoch: int) -> Epoch:
        """Return the pass over the arrays in the order of `epoch`."""
        if self._seed is None:
            order = np.arange(self.num_examples)
        else:
            order = np.random.default_rng([self._seed, epoch]).permutation(self.num_examples)
        return _ArrayEpoch(self._arrays, tf.constant(order, tf.int32), self.batch_size)

    def rehearsal(self) -> tuple[Epoch, int]:
        """Return whole batches in a pass that starts again when it is through."""
        whole = self.num_examples // self.batch_size
        order = tf.range(self.num_examples)
        return _ArrayEpoch(self._arrays, order, self.batch_size, again=True), whole

    def signature(self) -> Any:
        """Return the structure of one whole batch."""
        return batch_spec(self._arrays, self.batch_size)

    def examples(self) -> Any:
        """Return the first examples."""
        return keras.tree.map_structure(
            lambda array: None if array is None else array[: self.batch_size], self._arrays
        )

    def fingerprint(self) -> str | None:
        """Return a number made of the arrays, of some of their rows where they are large."""
        return fingerprint_of(self._arrays)


class _ArrayEpoch:
    def __init__(self, arrays: Any, order: Any, batch_size: int, again: bool = False) -> None:
        self._arrays = arrays
        self._order = order
        self._batch_size = batch_size
        self._whole, self._rest = divmod(int(order.shape[0]), batch_size)
        self._position = 0
        self._again = again

    def trace(self, loop: StepLoop) -> None:
        loop.run_arrays(self._arrays, self._order, 0, 0, self._batch_size, last=False)

    def run(self, loop: StepLoop, count: int) -> tuple[int, dict[str, Any]]:
        if self._again and self._position + count > self._whole:
            self._position = 0
        done, logs = 0, dict[str, Any]()
        whole = min(count, self._whole - self._position)
        if whole > 0:
            done, logs = loop.run_arrays(
                self._arrays, self._order, self._position, whole, self._batch_size, last=False
            )
        # The last, smaller batch has a shape of its own, and so a function of its own: all the
        # others keep a shape that is known when the step is compiled.
        if done < count and self._rest and self._position + done == self._whole:
            rest = self._order[self._whole * self._batch_size :]
            one, logs = loop.run_arrays(self._arrays, rest, 0, 1, self._rest, last=True)
            done += one
        self._position += done
        return done, logs


class DatasetFeed:
    """A `tf.data` pipeline of batches, drawn from inside the compiled loop.

    A pipeline with an attribute `for_epoch` (a function from the epoch's number to a dataset) is
    asked for each epoch's dataset. Any other is iterated as it is.
    """

    def __init__(
        self, name: str, dataset: Any, steps_per_epoch: int | None, first_epoch: int
    ) -> None:
        self._name = name
        self._dataset = dataset
        self._for_epoch = getattr(dataset, "for_epoch", None)
        self._steps_per_epoch = steps_per_epoch
        self._first_epoch = first_epoch
        cardinality = int(dataset.cardinality())
        if cardinality == 0:
            raise self._empty()
        if cardinality == tf.data.INFINITE_CARDINALITY and steps_per_epoch is None:
            fix = (
                "Pass `steps_per_epoch`" if name == "train_data" else "Cut it with `.take(batches)`"
            )
            raise ValueError(f"`{name}` must end. Received: an endless pipeline. {fix}")
        self.steps: int | None = steps_per_epoch or (cardinality if cardinality > 0 else None)
        self._endless: Any = None
        self._waiting: Any = None
        self._first_batch: Any = None
        self._element_spec = dataset.element_spec
        if self._for_epoch is not None:
            first = self._for_epoch(first_epoch)
            self._element_spec = first.element_spec
            self._first_batch = self._first(iter(first))
        elif name == "train_data":
            # Opening such a pipeline twice may change what it yields next, so the batch that was
            # looked at is kept and fed first.
            self._waiting = self._iterator(first_epoch)
            self._first_batch = self._first(self._waiting)

    def open(self, epoch: int) -> Epoch:
        """Return the pass over the pipeline that belongs to `epoch`."""
        if self._waiting is not None:
            iterator, self._waiting = self._waiting, None
            return _DatasetEpoch([self._of_first_batch(repeat=False), iterator], self.steps)
        return _DatasetEpoch([self._iterator(epoch)], self.steps)

    def rehearsal(self) -> tuple[Epoch, int]:
        """Return the first batch again and again."""
        return _DatasetEpoch([self._of_first_batch(repeat=True)], None), 1 << 30

    def signature(self) -> Any:
        """Return the structure of one batch."""
        return self._element_spec

    def examples(self) -> Any:
        """Return the first batch that was looked at, or `None`."""
        return self._first_batch

    def fingerprint(self) -> str | None:
        """Return a number made of the first batch of epoch 0, where that is always the same."""
        if self._for_epoch is None:
            return None
        found = {fingerprint_of(self._first(iter(self._for_epoch(0)))) for _ in range(2)}
        return found.pop() if len(found) == 1 else None

    def _iterator(self, epoch: int) -> Any:
        if self._for_epoch is not None:
            dataset = self._for_epoch(epoch)
            return iter(dataset.repeat() if self._steps_per_epoch else dataset)
        if self._steps_per_epoch is None:
            return iter(self._dataset)
        if self._endless is None:
            seen = self._first_epoch * self._steps_per_epoch
            self._endless = iter(self._dataset.repeat().skip(seen))
        return self._endless

    def _first(self, iterator: Iterator[Any]) -> Any:
        try:
            return next(iterator)
        except StopIteration:
            raise self._empty() from None

    def _of_first_batch(self, *, repeat: bool) -> Any:
        # `from_generator`, since the compiled loop takes an iterator of exactly this structure,
        # whose batch dimension is unknown as a rule.
        batches = tf.data.Dataset.from_generator(
            lambda: iter([self._first_batch]), output_signature=self._element_spec
        )
        return iter(batches.cache().repeat() if repeat else batches)

    def _empty(self) -> ValueError:
        return ValueError(f"`{self._name}` must yield at least one batch. Received: none")


class _DatasetEpoch:
    def __init__(self, iterators: list[Any], steps: int | None) -> None:
        self._iterators = iterators
        self._left = math.inf if steps is None else steps

    def trace(self, loop: StepLoop) -> None:
        loop.run_iterator(self._iterators[-1], 0)

    def run(self, loop: StepLoop, count: int) -> tuple[int, dict[str, Any]]:
        count = int(min(count, self._left))
        if count == 0:
            return 0, {}
        if len(self._iterators) > 1:
            count = 1
            iterator = self._iterators.pop(0)
        else:
            iterator = self._iterators[0]
        done, logs = loop.run_iterator(iterator, count)
        self._left -= done
        return done, logs


def _as_tensor(array: Any) -> Any:
    # As in `fit`: floating-point arrays take Keras' own precision.
    if hasattr(array, "numpy"):
        array = array.numpy()
    array = np.asarray(array)
    if np.issubdtype(array.dtype, np.floating):
        array = array.astype(keras.config.floatx(), copy=False)
    return tf.convert_to_tensor(array)
