"""The batch of the first step that was not finite, kept by the compiled step itself.

A queue of one place takes it: it holds tensors of any shape, and lies outside of every strategy. A
step that is finite costs one condition.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from gradstab.optimizers.compiled.branches import as_written
from gradstab.optimizers.telemetry.telemetry import Telemetry


@dataclasses.dataclass(frozen=True)
class Kept:
    """A batch that was kept.

    Attributes:
        step: Number of the step.
        batch: `(x, y, sample_weight)`, or less, of tensors; of all replicas of this process.
        rows: Numbers of its rows in the training arrays, where they are known.
    """

    step: int
    batch: Any
    rows: Any = None


class KeptBatch:
    """Keeps the batch of the first step that was not finite, until somebody takes it.

    Args:
        strategy: The strategy of the model.

    Attributes:
        telemetries: What tells of the steps.
    """

    def __init__(self, strategy: Any) -> None:
        self._strategy = strategy
        self.telemetries: list[Telemetry] = []
        self._queues: list[tuple[Any, Any]] = []
        self._eager: Kept | None = None

    @as_written
    def after_step(self, batch: Any) -> None:
        """Keep the batch of a step that was not finite; called in the compiled step, after it."""
        told = [each for each in self.telemetries if each.is_used and each.variables]
        layout = _Layout(batch, self._strategy)
        if not told or not layout.tensors:
            return
        if tf.executing_eagerly():
            if self._eager is None and not all(bool(each.norms_are_finite) for each in told):
                batch = layout.batch_of(layout.tensors)
                self._eager = Kept(int(told[0].next_step()) - 1, batch)
            return
        with tf.init_scope(), tf.device("CPU:0"):
            queue = tf.queue.FIFOQueue(1, [tf.int64, *(each.dtype for each in layout.tensors)])
        self._queues.append((queue, layout))

        def keep_the_first() -> None:
            _run_if(queue.size() == 0, keep)

        def keep() -> None:
            step = tf.cast(told[0].next_step() - 1, tf.int64)
            queue.enqueue([step, *layout.tensors])

        finite = [each.norms_are_finite for each in told]
        is_bad = tf.logical_not(finite[0] if len(finite) == 1 else tf.reduce_all(finite))
        _run_if(is_bad, keep_the_first)
        layout.forget()

    def take(self) -> Kept | None:
        """Return the batch that is kept, and keep the next one; `None` if there is none."""
        found = [] if self._eager is None else [self._eager]
        self._eager = None
        for queue, layout in self._queues:
            if int(queue.size()):
                step, *tensors = queue.dequeue()
                found.append(Kept(int(step), layout.batch_of(tensors)))
        return min(found, key=lambda kept: kept.step, default=None)


def _run_if(condition: Any, function: Callable[[], None]) -> None:
    if tf.executing_eagerly():
        if bool(condition):
            function()
        return

    def run() -> Any:
        function()
        return tf.constant(0)

    tf.cond(condition, run, lambda: tf.constant(0))


class _Layout:
    """How the tensors of a batch, of all replicas of this process, make up its parts.

    Args:
        batch: As the compiled step takes it.
        strategy: The strategy of the model.

    Attributes:
        tensors: The tensors.
    """

    def __init__(self, batch: Any, strategy: Any) -> None:
        self._structure = keras.tree.map_structure(lambda _: 0, batch)
        self._specs: list[list[Any] | None] = []
        self.tensors: list[Any] = []
        for leaf in keras.tree.flatten(batch):
            if leaf is None or isinstance(leaf, tf.experimental.Optional):
                self._specs.append(None)  # Keras hands the step `None` for it.
                continue
            shares = strategy.experimental_local_results(leaf)
            self._specs.append([tf.type_spec_from_value(share) for share in shares])
            self.tensors += tf.nest.flatten(shares, expand_composites=True)

    def forget(self) -> None:
        """Let go of the tensors, which belong to a graph."""
        self.tensors = []

    def batch_of(self, tensors: Sequence[Any]) -> Any:
        """Return the batch that tensors make up, the shares of replicas one after the other."""
        left = iter(tensors)
        leaves: list[Any] = []
        for specs in self._specs:
            if specs is None:
                leaves.append(None)
                continue
            shares = []
            for spec in specs:
                count = len(tf.nest.flatten(spec, expand_composites=True))
                parts = [next(left) for _ in range(count)]
                shares.append(tf.nest.pack_sequence_as(spec, parts, expand_composites=True))
            first = shares[0]
            leaves.append(tf.concat(shares, 0) if len(shares) > 1 and first.shape.rank else first)
        return keras.tree.pack_sequence_as(self._structure, leaves)
