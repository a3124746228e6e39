"""The look at the data: what inputs and targets hold, measured with NumPy."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import numpy as np

_Array = np.ndarray[Any, Any]

# Whole numbers of more different values than this are quantities, not classes.
_MOST_CLASSES: Final = 1000
# Rows that statistics are taken of; finiteness is checked on all.
_ROWS: Final = 20_000
# Entries that are looked at in one go.
_ENTRIES: Final = 10_000_000


@dataclasses.dataclass(frozen=True)
class InputLook:
    """One input array.

    Attributes:
        name: Its name, or place in the structure.
        shape: Shape of one row.
        kind: `"float"`, `"index"` (whole numbers that a layer looks up) or `"text"`.
        rows: Rows looked at.
        nonfinite: Entries that are not finite.
        nonfinite_rows: Rows that hold such an entry.
        first_nonfinite: Row and feature of the first of them.
        features: Features along the last axis.
        constant_features: Features that never change.
        largest_scale: Root mean square of the largest feature.
        smallest_scale: The same of the smallest feature that changes.
        largest_offset: Largest mean of a feature in units of its deviation.
        all_constant: Whether nothing changes from row to row.
        largest_feature: Place of the largest feature.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    rows: int
    nonfinite: int = 0
    nonfinite_rows: int = 0
    first_nonfinite: tuple[int, int] | None = None
    features: int = 1
    constant_features: int = 0
    largest_scale: float = 1.0
    smallest_scale: float = 1.0
    largest_offset: float = 0.0
    all_constant: bool = False
    largest_feature: int = 0


@dataclasses.dataclass(frozen=True)
class TargetLook:
    """One target array.

    Attributes:
        name: Its name, or place in the structure.
        shape: Shape of one row.
        kind: `"binary"` (0 and 1 alone), `"signs"` (-1 and 1), `"classes"` (whole numbers),
            `"one-hot"`, `"multi-hot"`, `"fractions"` (between 0 and 1), `"probabilities"` (in
            rows that sum to 1) or `"continuous"`.
        rows: Rows looked at.
        nonfinite: Entries that are not finite.
        first_nonfinite: Row of the first of them.
        minimum: Smallest entry.
        maximum: Largest entry.
        mean: Mean.
        deviation: Standard deviation.
        classes: Number of different classes that occur, 0 where there are none.
        counts: Rows of each class, for up to 1,000 of them.
        row_sum_share: Share of the rows whose entries sum to 1.
        below_zero: Share of the entries below 0.
        above_one: Share of the entries above 1.
        below_minus_one: Share of the entries below -1.
        whole: Whether all entries are whole numbers.
        is_sorted: Whether rows of a class stand together.
        constant: Whether all rows are alike.
        neighbours_agree: How much more often than by chance the nearest row has the same label, 0
            for chance and 1 for always; `None` where that was not measured.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    rows: int
    nonfinite: int = 0
    first_nonfinite: int | None = None
    minimum: float = 0.0
    maximum: float = 0.0
    mean: float = 0.0
    deviation: float = 0.0
    classes: int = 0
    counts: tuple[int, ...] = ()
    row_sum_share: float = 0.0
    below_zero: float = 0.0
    above_one: float = 0.0
    below_minus_one: float = 0.0
    whole: bool = False
    is_sorted: bool = False
    constant: bool = False
    neighbours_agree: float | None = None

    @property
    def majority(self) -> float:
        """Share of the most frequent class, 0 where there are none."""
        return max(self.counts) / sum(self.counts) if sum(self.counts) else 0.0


@dataclasses.dataclass(frozen=True)
class DataLook:
    """The data that training gets.

    Attributes:
        rows: Rows in all, or `None` where they can't be counted.
        inputs: Each input.
        targets: Each target.
        batch_size: Rows of a step.
        steps_per_epoch: Steps of an epoch, where that is known.
        epochs: Epochs of the plan, where it was told.
        contradictions: Share of repeated input rows that come with different targets.
        problems: What could not be looked at, in words.
    """

    rows: int | None
    inputs: tuple[InputLook, ...]
    targets: tuple[TargetLook, ...]
    batch_size: int
    steps_per_epoch: int | None = None
    epochs: int | None = None
    contradictions: float = 0.0
    problems: tuple[str, ...] = ()

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole plan, where both are known."""
        if self.epochs is None or self.steps_per_epoch is None:
            return None
        return self.epochs * self.steps_per_epoch


def look_at_input(name: str, values: _Array, *, is_index: bool = False) -> InputLook:
    """Measure an input array of shape (rows, ...)."""
    shape, rows = tuple(map(int, values.shape[1:])), len(values)
    if values.dtype.kind not in "fiub":
        return InputLook(name, shape, "text", rows)
    bad, bad_rows, first = _nonfinite(values)
    some = _some(values)
    few = _by_feature(some.astype("float64"))
    few = np.where(np.isfinite(few), few, 0.0)
    with np.errstate(all="ignore"):
        mean, deviation = few.mean(0), few.std(0)
        size = np.sqrt((few**2).mean(0))
    changing = deviation > 1e-7 * np.maximum(size, 1e-30)
    return InputLook(
        name=name,
        shape=shape,
        kind="index" if is_index else "float",
        rows=rows,
        nonfinite=bad,
        nonfinite_rows=bad_rows,
        first_nonfinite=first,
        features=few.shape[1],
        constant_features=int((~changing).sum()),
        largest_scale=float(size.max(initial=0.0)),
        smallest_scale=float(deviation[changing].min()) if changing.any() else 0.0,
        largest_offset=float((abs(mean) / np.maximum(deviation, 1e-30))[changing].max(initial=0.0)),
        all_constant=bool(rows > 1 and (some == some[:1]).all()),
        largest_feature=int(size.argmax()) if size.size else 0,
    )


def _some(values: _Array, rows: int = _ROWS) -> _Array:
    """Return rows at even distances, so few that they fit the memory several times."""
    wanted = max(2, min(rows, _ENTRIES // max(values[:1].size, 1)))
    return values[:: max(1, -(-len(values) // wanted))]


def _nonfinite(values: _Array) -> tuple[int, int, tuple[int, int] | None]:
    """Return how many entries and rows are not finite, and row and feature of the first."""
    if values.dtype.kind != "f":
        return 0, 0, None
    entries = rows = 0
    first = None
    size = max(1, _ENTRIES // max(values[:1].size, 1))
    for begin in range(0, len(values), size):
        part = values[begin : begin + size]
        finite = np.isfinite(part)
        if finite.all():
            continue
        by_row = ~finite.reshape(len(part), -1).all(1)
        entries, rows = entries + int((~finite).sum()), rows + int(by_row.sum())
        if first is None:
            row = int(np.flatnonzero(by_row)[0])
            place = int(np.flatnonzero(~_by_feature(finite[row : row + 1]).all(0))[0])
            first = (begin + row, place)
    return entries, rows, first


def _by_feature(values: _Array) -> _Array:
    """Return shape (entries, features): the features are the last axis."""
    return values.reshape(-1, 1) if values.ndim < 2 else values.reshape(-1, values.shape[-1])


def look_at_target(name: str, values: _Array, neighbours: float | None = None) -> TargetLook:
    """Measure a target array of shape (rows, ...)."""
    shape, rows = tuple(map(int, values.shape[1:])), len(values)
    if values.dtype.kind not in "fiub":
        return TargetLook(name, shape, "text", rows)
    bad, _, first = _nonfinite(values)
    numbers = _some(values, rows).astype("float64")
    few = np.where(np.isfinite(numbers), numbers, 0.0)
    kind, labels = _kind_of(few, shape)
    counts: tuple[int, ...] = ()
    is_sorted = False
    if labels is not None and labels.size:
        counted = np.bincount(labels.reshape(-1)) if labels.min() >= 0 else ()
        counts = tuple(map(int, counted[:_MOST_CLASSES]))
        if labels.ndim == 1:
            changes, different = int((labels[1:] != labels[:-1]).sum()), len(np.unique(labels))
            is_sorted = different > 1 and changes < 2 * different and rows > 8 * different
    matrix = few.reshape(len(few), -1)
    return TargetLook(
        name=name,
        shape=shape,
        kind=kind,
        rows=rows,
        nonfinite=bad,
        first_nonfinite=None if first is None else first[0],
        minimum=float(few.min(initial=np.inf)) if rows else 0.0,
        maximum=float(few.max(initial=-np.inf)) if rows else 0.0,
        mean=float(few.mean()) if rows else 0.0,
        deviation=float(matrix.std(0).mean()) if rows else 0.0,
        classes=sum(count > 0 for count in counts),
        counts=counts,
        row_sum_share=float((abs(matrix.sum(1) - 1) < 1e-3).mean()) if rows else 0.0,
        below_zero=float((few < 0).mean()) if rows else 0.0,
        above_one=float((few > 1).mean()) if rows else 0.0,
        below_minus_one=float((few < -1).mean()) if rows else 0.0,
        whole=bool((few == np.round(few)).all()),
        is_sorted=is_sorted,
        constant=bool(rows > 1 and (matrix == matrix[:1]).all()),
        neighbours_agree=neighbours,
    )


def _kind_of(values: _Array, shape: tuple[int, ...]) -> tuple[str, _Array | None]:
    """Return what targets are, and the class of each row where there are classes."""
    whole = bool((values == np.round(values)).all())
    low, high = (values.min(), values.max()) if values.size else (0.0, 0.0)
    width = shape[-1] if shape else 1
    if width > 1 and low >= 0 and high <= 1:
        sums_to_one = bool((abs(values.sum(-1) - 1) < 1e-3).all())
        if whole:
            return ("one-hot", values.argmax(-1)) if sums_to_one else ("multi-hot", None)
        return ("probabilities" if sums_to_one else "fractions"), None
    if whole:
        labels = values.astype("int64")
        labels = labels[..., 0] if shape and width == 1 else labels
        different = np.unique(labels)
        if low >= 0 and high <= 1:
            return "binary", labels
        if set(different) == {-1, 1}:
            return "signs", None
        # Quantities that happen to be whole have many values, or gaps between them.
        dense = len(different) > 0.5 * (high - low + 1)
        if len(different) <= _MOST_CLASSES and dense and (width == 1 or not shape):
            return "classes", labels
        if width > 1 and dense and len(shape) == 1 and high - low > 1 and len(different) > 2:
            return "classes", labels if low >= 0 else None
        return "continuous", None
    return ("fractions" if low >= 0 and high <= 1 else "continuous"), None
