"""Arrays that lie on the device; a step gathers its rows there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf

from gradstab.training.feed import Epoch
from gradstab.training.fingerprint import fingerprint_of
from gradstab.training.strategy import StepLoop, batch_spec

HOW_TO_FEED: Final = (
    "Pass arrays x and y, a tuple (x, y) or (x, y, sample_weight), a tf.data.Dataset of batches, a "
    "keras.utils.PyDataset or a generator of batches"
)


class ArrayFeed:
    """Arrays as training data.

    Args:
        name: The argument that they came in as, for messages.
        arrays: `(x,)`, `(x, y)` or `(x, y, sample_weight)`, each an array or a structure of them.
        batch_size: Examples per step.
        seed: Shuffles by seed and epoch; None keeps the order.
    """

    def __init__(self, name: str, arrays: Any, batch_size: int, seed: int | None) -> None:
        leaves = keras.tree.flatten(tuple(part for part in arrays if part is not None))
        for leaf in leaves:
            if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype") or not len(leaf.shape):
                raise TypeError(
                    f"`{name}` must hold NumPy arrays or tensors with examples along the first "
                    f"axis. Received: a {type(leaf).__name__}. {HOW_TO_FEED}"
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
        order = tf.constant(self._order(epoch), tf.int32)
        return _ArrayEpoch(self._arrays, order, self.batch_size)

    def _order(self, epoch: int) -> Any:
        if self._seed is None:
            return np.arange(self.num_examples)
        return np.random.default_rng([self._seed, epoch]).permutation(self.num_examples)

    def batch(self, epoch: int, number: int) -> tuple[Any, Sequence[int] | None] | None:
        """Return a batch of an epoch, and the rows that it holds."""
        rows = self._order(epoch)[number * self.batch_size : (number + 1) * self.batch_size]
        gathered = keras.tree.map_structure(
            lambda array: None if array is None else tf.gather(array, rows), self._arrays
        )
        return gathered, rows.tolist()

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

    def skip(self, count: int) -> None:
        self._position += count

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


def _as_tensor(array: Any) -> Any:
    # As in `fit`: floating-point arrays take Keras' own precision.
    if hasattr(array, "numpy"):
        array = array.numpy()
    array = np.asarray(array)
    if np.issubdtype(array.dtype, np.floating):
        array = array.astype(keras.config.floatx(), copy=False)
    return tf.convert_to_tensor(array)
