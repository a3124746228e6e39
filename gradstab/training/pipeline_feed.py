"""A `tf.data` pipeline of batches, drawn from inside the compiled loop."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from gradstab.training.feed import Epoch
from gradstab.training.fingerprint import fingerprint_of
from gradstab.training.strategy import StepLoop


class DatasetFeed:
    """A `tf.data` pipeline as training data.

    A pipeline with an attribute `for_epoch` (a function from the epoch's number to a dataset) is
    asked for each epoch's dataset. Any other is iterated as it is. A function in an attribute
    `between_epochs` is called before each epoch but the first.
    """

    def __init__(
        self, name: str, dataset: Any, steps_per_epoch: int | None, first_epoch: int
    ) -> None:
        self._name = name
        self._dataset = dataset
        self._for_epoch = getattr(dataset, "for_epoch", None)
        self._between_epochs = getattr(dataset, "between_epochs", None)
        self._was_opened = False
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
        if self._was_opened and self._between_epochs is not None:
            self._between_epochs()
        self._was_opened = True
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

    def batch(self, epoch: int, number: int) -> tuple[Any, Sequence[int] | None] | None:
        """Return a batch of an epoch, where an epoch can be gone through again."""
        if self._for_epoch is None:
            return None
        found = next(iter(self._for_epoch(epoch).skip(number)), None)
        return None if found is None else (found, None)

    def fingerprint(self) -> str | None:
        """Return a number made of the first batch of epoch 0, where that is always the same.

        Of other pipelines, which may be shuffled anew by each process, it is what they yield:
        shapes and dtypes, and how many batches.
        """
        if self._for_epoch is not None:
            found = {fingerprint_of(self._first(iter(self._for_epoch(0)))) for _ in range(2)}
            if len(found) == 1 and None not in found:
                return found.pop()
        cardinality = int(self._dataset.cardinality())
        many = {tf.data.INFINITE_CARDINALITY: "endless", tf.data.UNKNOWN_CARDINALITY: "some"}
        shapes = [
            f"{getattr(spec, 'shape', '')} {getattr(getattr(spec, 'dtype', None), 'name', spec)}"
            for spec in tf.nest.flatten(self._element_spec)
        ]
        return f"{many.get(cardinality, cardinality)} batches of {', '.join(shapes)}"

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

    def skip(self, count: int) -> None:
        self._left -= count
        if count and len(self._iterators) > 1:
            self._iterators.pop(0)  # It holds the first batch alone.
            count -= 1
        for _ in range(count):
            next(self._iterators[0], None)

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
