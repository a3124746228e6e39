"""What there is to tell of the tensors of a step beyond their norms, all of them at once.

A compiler takes about as long for a reduction of one tensor as for one of many side by side. So
small tensors lie together as the rows of a matrix, and each statistic is one reduction of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

import keras
import numpy as np
from keras import ops

from gradstab._variables import value_of
from gradstab.functional.norms import widen

# Entries of a row; each tensor is filled up to whole rows with zeros.
_WIDTH: Final = 256
# Entries of a matrix. A tensor that has more is looked at as it lies, without a copy.
_MOST: Final = 2**20
_NAMES: Final = (
    "largest",
    "nonzero",
    "nonfinite",
    "weight_norm",
    "update_norm",
    "predicted",
)


def statistics_of_step(
    gradients: Sequence[Any],
    before: Sequence[Any],
    after: Sequence[Any],
    rows: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Return what there is to tell of a step, one number for each variable.

    Sums of squares are taken in float64, which holds those of all float32 numbers.

    Args:
        gradients: Tensors in any float dtype; `None` counts as zeros.
        before: The variables before the step, of known shapes.
        after: The variables after it.
        rows: Of each gradient that holds some rows only, their indices, shape (rows,); else `None`.

    Returns:
        Float32 vectors: `largest`, the largest finite magnitude of the gradient; `nonzero`, how
        many of its entries are not exactly zero; `nonfinite`, how many are NaN or infinite;
        `weight_norm` after the step; `update_norm`; `predicted`, g·Δw, 0 where nothing moved.

    >>> import numpy as np
    >>> found = statistics_of_step([np.array([3.0, 0.0])], [np.zeros(2)], [np.array([-0.6, 0.8])])
    >>> {name: round(float(value[0]), 4) for name, value in found.items()}
    {'largest': 3.0, 'nonzero': 1.0, 'nonfinite': 0.0, 'weight_norm': 1.0, 'update_norm': 1.0, \
'predicted': -1.8}
    """
    rows = [None] * len(after) if rows is None else rows
    shapes = [tuple(variable.shape) for variable in after]
    dtypes = {keras.backend.standardize_dtype(variable.dtype) for variable in after}
    dtype = "float64" if "float64" in dtypes else "float32"

    def matrix(of: Sequence[Any], places: Sequence[int]) -> Any:
        return _matrix([of[place] for place in places], [shapes[place] for place in places], dtype)

    sums, largest, owners = [], [], []
    for places in _groups(shapes, rows):
        new = matrix(after, places)
        update = new - matrix(before, places)
        gradient, moved = matrix(gradients, places), update
        index = rows[places[0]]
        if index is not None:
            table = ops.reshape(update, shapes[places[0]])
            moved = ops.reshape(ops.take(table, index, axis=0), (1, -1))
        finite = ops.isfinite(gradient)
        columns = [
            ops.cast(gradient != 0, dtype),
            ops.cast(ops.logical_not(finite), dtype),
            gradient * moved,
            ops.square(ops.cast(new, "float64")),
            ops.square(ops.cast(update, "float64")),
        ]
        reduced = [ops.cast(ops.sum(column, axis=1), "float64") for column in columns]
        sums.append(ops.stack(reduced, axis=1))
        largest.append(ops.max(ops.where(finite, ops.abs(gradient), 0.0), axis=1))
        owners += [np.repeat(places, [_rows_of(shapes[place], places) for place in places])]
    if not sums:
        return dict.fromkeys(_NAMES, ops.zeros((len(after),), "float32"))
    owner = np.concatenate(owners).astype("int32")
    each = ops.segment_sum(ops.concatenate(sums), owner, num_segments=len(after))
    most = ops.segment_max(ops.concatenate(largest), owner, num_segments=len(after))
    nonzero, nonfinite, predicted, weights, updates = ops.unstack(each, axis=1)
    found = [
        ops.maximum(most, 0.0),  # Of a tensor without entries it is the smallest number there is.
        nonzero,
        nonfinite,
        ops.sqrt(weights),
        ops.sqrt(updates),
        ops.where(updates == 0, 0.0, predicted),
    ]
    return {name: ops.cast(value, "float32") for name, value in zip(_NAMES, found, strict=True)}


def histogram(value: Any, bins: int) -> Any:
    """Return the smallest and the largest finite entry, and how many lie in each of equal bins.

    Entries that are not finite are left out. Where all are equal they are in the first bin.

    Args:
        value: Tensor of any shape with at least one entry, in any float dtype.
        bins: Number of bins between the two.

    Returns:
        Float32 vector of `2 + bins` numbers: both ends, then the counts.

    >>> import numpy as np
    >>> histogram(np.array([0.0, 1.0, 1.0, 4.0]), 4).numpy().tolist()
    [0.0, 4.0, 1.0, 2.0, 0.0, 1.0]
    """
    flat = ops.cast(ops.reshape(widen(value), (-1,)), "float32")
    finite = ops.isfinite(flat)
    some = ops.any(finite)
    low = ops.where(some, ops.min(ops.where(finite, flat, float("inf"))), 0.0)
    high = ops.where(some, ops.max(ops.where(finite, flat, float("-inf"))), 0.0)
    # Halves, for the whole range of float32 is more than it can hold.
    half_width = high / 2 - low / 2
    share = (flat / 2 - low / 2) / ops.where(half_width > 0, half_width, 1.0)
    place = ops.cast(ops.clip(ops.where(finite, share, 0.0) * bins, 0, bins - 1), "int32")
    counts = ops.segment_sum(ops.cast(finite, "float32"), place, num_segments=bins)
    return ops.concatenate([ops.stack([low, high]), counts])


def _groups(shapes: Sequence[tuple[int, ...]], rows: Sequence[Any]) -> Iterator[list[int]]:
    """Yield the places of tensors that are to lie in one matrix; those without entries have none.

    Args:
        shapes: Their shapes.
        rows: As in `statistics_of_step`.
    """
    group: list[int] = []
    filled = 0
    for place, shape in enumerate(shapes):
        size = math.prod(shape)
        if rows[place] is not None or size > _MOST:
            yield [place]
        elif size:
            if filled + size > _MOST:
                yield group
                group, filled = [], 0
            group.append(place)
            filled += size
    if group:
        yield group


def _rows_of(shape: tuple[int, ...], group: Sequence[int]) -> int:
    return 1 if len(group) == 1 else -(-math.prod(shape) // _WIDTH)


def _matrix(values: Sequence[Any], shapes: Sequence[tuple[int, ...]], dtype: str) -> Any:
    """Return tensors one below the other, each filled up with zeros; a single one as one row."""
    flat = [
        ops.zeros((math.prod(shape),), dtype)
        if value is None
        else ops.cast(ops.reshape(value_of(value), (-1,)), dtype)
        for value, shape in zip(values, shapes, strict=True)
    ]
    if len(flat) == 1:
        return ops.reshape(flat[0], (1, -1))
    parts: list[Any] = []
    fillings: dict[int, Any] = {}
    for value, shape in zip(flat, shapes, strict=True):
        parts.append(value)
        missing = -math.prod(shape) % _WIDTH
        if missing:
            if missing not in fillings:
                fillings[missing] = ops.zeros((missing,), dtype)
            parts.append(fillings[missing])
    return ops.reshape(ops.concatenate(parts), (-1, _WIDTH))
