"""Leaves examples with NaN or infinity out of the loss, where skipping would drop whole batches."""

from __future__ import annotations

import dataclasses
from typing import Any, Final, final

import keras
import numpy as np
import tensorflow as tf

# Bad examples that are remembered one by one; all are counted.
_REMEMBERED: Final = 1000
_PARTS: Final = ("inputs", "targets", "weights")


@dataclasses.dataclass(frozen=True)
class BadExample:
    """An example that holds NaN or an infinity.

    Attributes:
        batch: Number of its batch in a pass over the data, from 0; `None` in arrays.
        row: Its place in the batch, or in the arrays, from 0.
        field: The part that is not finite: `"inputs"`, `"targets"` or `"weights"`, with the number
            of the array if there are several.
    """

    batch: int | None
    row: int
    field: str


@final
class BadExamples:
    """Finds examples with NaN or infinity, leaves them out of the loss, and lists them.

    One bad example makes the gradient of its whole batch NaN. If 5 % are bad, 81 % of the batches
    of 32 hold one, and skipping steps would leave few batches to learn from. Here training uses the
    other examples of the batch, in `fit` and in `training.train`.

    A bad example gets the weight 0 and the values of a good one in its batch, so that it does not
    disturb BatchNorm's statistics. The weights of the others are multiplied by n/m, for m good ones
    among n, so that the mean loss is that of the good ones. A batch without a good example becomes
    zeros of weight 0. From arrays, bad rows are removed directly.

    Attributes:
        count: Number of bad examples so far, each counted in every pass.
        examples: The first thousand of them, each listed once by batch and row. They are the same
            examples in every pass only if the order of the batches is fixed.

    Example:
    >>> import numpy as np, tensorflow as tf
    >>> x = np.ones((8, 2), "float32")
    >>> x[5:7, 1] = np.nan
    >>> bad = BadExamples()
    >>> batches = bad.masked(tf.data.Dataset.from_tensor_slices((x, np.ones(8))).batch(4))
    >>> [weights.numpy().tolist() for _, _, weights in batches]
    [[1.0, 1.0, 1.0, 1.0], [2.0, 0.0, 0.0, 2.0]]
    >>> bad.count, bad.examples[0]
    (2, BadExample(batch=1, row=1, field='inputs'))
    """

    def __init__(self) -> None:
        self.count = 0
        self._found: set[BadExample] = set()

    @property
    def examples(self) -> list[BadExample]:
        """The bad examples that were met, in their order."""
        return sorted(self._found, key=lambda e: (e.batch or 0, e.row, e.field))

    def masked(self, dataset: Any) -> Any:
        """Return data in which bad examples have no effect.

        Args:
            dataset: A `tf.data.Dataset` of batches `(x, y)` or `(x, y, sample_weight)`, whose
                arrays have examples along the first axis, and whose weights are one per example;
                or a tuple `(x, y)` or `(x, y, sample_weight)` of arrays, or of structures of them.

        Returns:
            A dataset of batches `(x, y, sample_weight)`; or the tuple, without the bad rows.

        Raises:
            TypeError: If it is neither.
            ValueError: If the arrays differ in length, or no good example is left.
        """
        if isinstance(dataset, tuple):
            return self._without_bad_rows(dataset)
        spec = getattr(dataset, "element_spec", None)
        if not isinstance(spec, tuple) or len(spec) not in (2, 3):
            raise TypeError(
                "`dataset` must be a tf.data.Dataset of batches (x, y) or (x, y, sample_weight), "
                f"or a tuple of such arrays. Received: dataset={dataset!r}"
            )
        if len(spec) == 3 and (not hasattr(spec[2], "shape") or spec[2].shape.rank != 1):
            raise TypeError(
                "`dataset` must have weights of one number per example. Received: "
                f"weights of {spec[2]!r}"
            )
        found = self._mapped(dataset)
        of_epoch = getattr(dataset, "for_epoch", None)
        if of_epoch is not None:  # As `load` makes them: an order of its own for every epoch.
            found.for_epoch = lambda epoch: self._mapped(of_epoch(epoch))
        return found

    def __str__(self) -> str:
        if not self.count:
            return "No example that is not finite was met."
        shown = [
            f"{'' if e.batch is None else f'batch {e.batch}, '}row {e.row} ({e.field})"
            for e in self.examples[:10]
        ]
        more = len(self._found) - len(shown)
        named = "; ".join(shown) + (f"; and {more} more" if more > 0 else "")
        return f"Left out of the loss {self.count} times: {named}."

    def _without_bad_rows(self, arrays: Any) -> Any:
        leaves = [leaf for leaf in keras.tree.flatten(arrays) if leaf is not None]
        if len(arrays) not in (2, 3) or not all(len(getattr(a, "shape", ())) for a in leaves):
            raise TypeError(
                "`dataset` must be a tuple (x, y) or (x, y, sample_weight) of arrays with examples "
                f"along the first axis. Received: {len(arrays)} entries, with "
                f"{', '.join(sorted({type(leaf).__name__ for leaf in leaves}))}"
            )
        if len({int(leaf.shape[0]) for leaf in leaves}) > 1:
            raise ValueError(
                "The arrays of `dataset` must hold the same number of examples. Received: lengths "
                f"{', '.join(str(leaf.shape[0]) for leaf in leaves)}"
            )
        x, y, weight = (*arrays, None)[:3]
        fields, flags = _flags(*keras.tree.map_structure(_as_tensor, (x, y, weight)))
        good = np.all(np.asarray(flags), axis=0)
        self._note(None, np.asarray(flags), fields)
        if not good.any():
            raise ValueError(
                f"`dataset` must hold a good example. Received: none among {good.size}"
            )
        if good.all():
            return arrays
        return keras.tree.map_structure(
            lambda a: None if a is None else np.asarray(a)[good], arrays
        )

    def _mapped(self, dataset: Any) -> Any:
        return dataset.enumerate().map(lambda number, batch: self._masked(number, *batch))

    def _masked(self, number: Any, x: Any, y: Any, weight: Any = None) -> tuple[Any, Any, Any]:
        fields, flags = _flags(x, y, weight)
        good = tf.reduce_all(flags, axis=0)
        size = tf.shape(good)[0]
        places = tf.where(good)[:, 0]
        count = tf.shape(places)[0]

        def note() -> Any:
            def noted(number: Any, flags: Any) -> Any:
                self._note(int(number), np.asarray(flags), fields)
                return np.int64(0)

            return tf.numpy_function(noted, (number, flags), tf.int64)

        def others() -> Any:
            # Each bad row takes the values of a good one, in turn.
            turn = tf.cumsum(tf.cast(~good, tf.int32)) % tf.maximum(count, 1)
            return tf.where(good, tf.range(size, dtype=tf.int64), tf.gather(places, turn))

        noted = tf.cond(count < size, note, lambda: tf.constant(0, tf.int64))
        with tf.control_dependencies([noted]):
            rows = tf.cond(count > 0, others, lambda: tf.range(size, dtype=tf.int64))
        is_any = count > 0

        def taken(value: Any) -> Any:
            found = tf.gather(value, rows)
            return tf.where(is_any, found, tf.zeros_like(found)) if _is_float(value) else found

        x, y = keras.tree.map_structure(taken, (x, y))
        dtype = tf.as_dtype(keras.config.floatx())
        share = tf.cast(size, dtype) / tf.cast(tf.maximum(count, 1), dtype)
        whole = tf.ones((size,), dtype) if weight is None else tf.cast(weight, dtype)
        return x, y, tf.where(good, whole * share, tf.zeros_like(whole))

    def _note(self, number: int | None, flags: np.ndarray[Any, Any], fields: list[str]) -> None:
        bad = ~flags
        self.count += int(bad.any(axis=0).sum())
        for field, row in np.argwhere(bad):
            if len(self._found) < _REMEMBERED:
                self._found.add(BadExample(number, int(row), fields[field]))


def _flags(x: Any, y: Any, weight: Any) -> tuple[list[str], Any]:
    """Return the names of the arrays, and of each which rows are finite: (arrays, examples)."""
    fields: list[str] = []
    flags: list[Any] = []
    for part, structure in zip(_PARTS, (x, y, weight), strict=True):
        leaves = [leaf for leaf in keras.tree.flatten(structure) if leaf is not None]
        for place, leaf in enumerate(leaves):
            fields.append(part if len(leaves) == 1 else f"{part} {place}")
            rows = tf.shape(leaf)[0]
            if _is_float(leaf):
                finite = tf.reshape(tf.math.is_finite(leaf), (rows, -1))
                flags.append(tf.reduce_all(finite, axis=1))
            else:
                flags.append(tf.ones((rows,), tf.bool))
    return fields, tf.stack(flags)


def _as_tensor(value: Any) -> Any:
    return None if value is None else tf.convert_to_tensor(value)


def _is_float(value: Any) -> bool:
    return bool(value.dtype.is_floating)
