"""Rows of the data to look at, taken from arrays, pipelines, datasets and generators."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf

# What is taken at most: enough for every look, and little enough for the memory.
_ROWS: Final = 4096
_BYTES: Final = 256_000_000
_BATCHES: Final = 256


@dataclasses.dataclass(frozen=True)
class Sample:
    """Rows in the structure that the model takes, as NumPy arrays.

    Attributes:
        x: Inputs.
        y: Targets, or `None`.
        weights: Sample weights, or `None`.
        total_rows: Rows in all, or `None` where they can't be counted.
        batch_size: Rows of a step.
        steps_per_epoch: Steps of an epoch, or `None`.
        all_x: All inputs, where they are arrays; else those of the sample.
        all_y: All targets likewise.
        problems: What could not be looked at, in words.
    """

    x: Any
    y: Any
    weights: Any
    total_rows: int | None
    batch_size: int
    steps_per_epoch: int | None
    all_x: Any
    all_y: Any
    problems: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Rows of the sample."""
        return len(keras.tree.flatten(self.x)[0])

    def in_order(self, names: list[str]) -> Sample:
        """Return the same with targets and weights given by name as lists in that order."""

        def listed(part: Any) -> Any:
            if not isinstance(part, dict) or set(part) != set(names):
                return part
            return [part[name] for name in names]

        return dataclasses.replace(
            self, y=listed(self.y), all_y=listed(self.all_y), weights=listed(self.weights)
        )

    def take(self, rows: Any) -> tuple[Any, Any, Any]:
        """Return inputs, targets and weights of some rows."""
        cut = [_map(lambda each: each[rows], part) for part in (self.x, self.y, self.weights)]
        return cut[0], cut[1], cut[2]


def take_sample(x: Any, y: Any, weights: Any, batch_size: int, seed: int) -> Sample:
    """Take rows of whatever `fit` accepts.

    Raises:
        ValueError: If there is no row, or inputs and targets differ in their number of rows.
        TypeError: If it is nothing that `fit` accepts.
    """
    if y is None and isinstance(x, list) and all(isinstance(each, tuple) for each in x) and x:
        return _of_batches(x)
    if _is_arrays(_plain(x)):
        return _of_arrays(x, y, weights, batch_size, seed)
    if y is not None:
        raise ValueError(
            "`y` must be left out where `x` gives batches: they hold the targets. "
            f"Received: x={type(x).__name__}, y={type(y).__name__}"
        )
    return _of_batches(x)


def tensors(parts: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
    """Return inputs, targets and weights as tensors in Keras' own precision."""

    def tensor(value: Any) -> Any:
        return tf.constant(value, keras.config.floatx() if value.dtype.kind == "f" else None)

    x, y, weights = (_map(tensor, part) for part in parts)
    return x, y, weights


def _is_arrays(x: Any) -> bool:
    flat = keras.tree.flatten(x)
    return bool(flat) and all(hasattr(each, "shape") and hasattr(each, "dtype") for each in flat)


def _of_arrays(x: Any, y: Any, weights: Any, batch_size: int, seed: int) -> Sample:
    parts = [_map(_as_array, _plain(part)) for part in (x, y, weights)]
    flat = [each for part in parts for each in keras.tree.flatten(part) if each is not None]
    counts = {each.shape[0] if each.ndim else 0 for each in flat}
    if counts == {0} or not counts:
        raise ValueError("`x` must hold at least one row. Received: x without any")
    if len(counts) > 1:
        raise ValueError(
            "`x`, `y` and `sample_weight` must have the same number of rows. "
            f"Received: arrays of {', '.join(map(str, sorted(counts)))} rows"
        )
    rows = counts.pop()
    wanted = max(min(_ROWS, int(_BYTES // max(sum(e.nbytes for e in flat) / rows, 1))), 8)
    few = np.arange(rows)
    if rows > wanted:
        few = np.sort(np.random.default_rng(seed).permutation(rows)[:wanted])
    taken = [_map(lambda each: each[few], part) for part in parts]
    size = min(batch_size, rows)
    x, y, weights = taken
    return Sample(x, y, weights, rows, size, -(-rows // batch_size), parts[0], parts[1])


def _of_batches(x: Any) -> Sample:
    problems: tuple[str, ...] = ()
    length: int | None = None
    if isinstance(x, keras.utils.PyDataset):
        length = x.num_batches
        batches: Iterable[Any] = (x[place] for place in range(min(length or _BATCHES, _BATCHES)))
    elif hasattr(x, "cardinality") and hasattr(x, "element_spec"):
        count = int(x.cardinality())
        length = count if count >= 0 else None
        batches = x
    elif hasattr(x, "__next__"):
        batches = x
        problems = (
            "x is a generator, which can't be wound back: the batches looked at are gone from it. "
            "Give the diagnosis a generator of its own.",
        )
    elif hasattr(x, "__iter__") and not isinstance(x, str | bytes | dict):
        batches = x
        length = len(x) if hasattr(x, "__len__") else None
    else:
        raise TypeError(
            "`x` must be arrays, a `tf.data.Dataset`, a `keras.utils.PyDataset` or an iterable of "
            f"batches. Received: x={type(x).__name__}"
        )
    taken, rows, size = [], 0, 0
    for batch in itertools.islice(batches, _BATCHES):
        parts = keras.utils.unpack_x_y_sample_weight(batch)
        taken.append([_map(_as_array, part) for part in parts])
        count = len(keras.tree.flatten(taken[-1][0])[0])
        rows, size = (
            rows + count,
            size
            + sum(
                each.nbytes
                for part in taken[-1]
                for each in keras.tree.flatten(part)
                if each is not None
            ),
        )
        if rows >= _ROWS or size >= _BYTES:
            break
    if not rows:
        raise ValueError("`x` must give at least one batch with rows. Received: x without any")
    batch_size = len(keras.tree.flatten(taken[0][0])[0])
    joined = [_joined([batch[place] for batch in taken]) for place in range(3)]
    total = None if length is None else (rows if length <= len(taken) else length * batch_size)
    inputs, y, weights = joined
    return Sample(inputs, y, weights, total, batch_size, length, inputs, y, problems)


def _joined(parts: list[Any]) -> Any:
    if parts[0] is None:
        return None
    return keras.tree.map_structure(lambda *each: np.concatenate(each), *parts)


def _map(function: Any, part: Any) -> Any:
    return None if part is None else keras.tree.map_structure(function, part)


def _as_array(value: Any) -> Any:
    if type(value).__name__ in ("RaggedTensor", "SparseTensor"):
        raise TypeError(
            "`x` and `y` must be dense where they are diagnosed. "
            f"Received: a {type(value).__name__}. Pass some batches made dense"
        )
    return np.asarray(value.numpy() if hasattr(value, "numpy") else value)


def _plain(part: Any) -> Any:
    """Return frames and series as arrays; lists of numbers as Keras takes them, too."""
    if hasattr(part, "to_numpy"):
        return part.to_numpy()
    is_list = isinstance(part, list | tuple) and not hasattr(part, "shape")
    if is_list and part and not any(hasattr(each, "shape") for each in part):
        return np.asarray(part)
    return part
