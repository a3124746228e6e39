"""Which entries of a batch are not finite."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Entries:
    """Entries of an array that are not as they should be.

    Attributes:
        row: Row of the first.
        column: Place of the first in its row.
        rows: How many rows have one.
        of_rows: How many rows there are.
        value: The first.
    """

    row: int | None
    column: tuple[int, ...]
    rows: int
    of_rows: int
    value: Any


def marked(values: Any, is_bad: Any) -> Entries | None:
    """Return the entries that are marked, or `None` if there are none.

    Args:
        values: An array, rows first.
        is_bad: Booleans of the same shape.

    >>> found = marked(np.array([[1.0, np.nan], [3.0, np.nan]]), np.array([[0, 1], [0, 1]], bool))
    >>> found.row, found.column, found.rows
    (0, (1,), 2)
    """
    values, is_bad = np.asarray(values), np.asarray(is_bad)
    if not is_bad.any():
        return None
    if not is_bad.ndim:
        return Entries(None, (), 1, 1, values[()])
    first = tuple(int(each[0]) for each in np.nonzero(is_bad))
    rows = int(is_bad.reshape(len(is_bad), -1).any(1).sum())
    return Entries(first[0], first[1:], rows, len(is_bad), values[first])


def not_finite(values: Any) -> Entries | None:
    """Return the entries of an array that are NaN or infinite, or `None` if there are none."""
    values = np.asarray(values)
    if values.dtype.kind not in "fc" and values.dtype.name != "bfloat16":
        return None
    return marked(values, ~np.isfinite(values.astype("float64")))
