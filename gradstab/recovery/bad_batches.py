"""Names the examples that made steps fail: epoch, batch, place in the batch, array, and row.

Telemetry knows which steps failed, but not on what. `training.train` can show their batches again.
`fit` can't, but shows the batch at the same place of a later epoch before its step: where the order
of the data is always the same, it is the same batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import keras
import numpy as np

from gradstab.optimizers.step.accumulation import window_size
from gradstab.recovery.first_batch import FirstBatch
from gradstab.recovery.step_losses import StepLosses

# Batches that are looked at, in one run and at one time: a pipeline has to be run up to each.
_MOST: Final = 20
_MOST_AT_ONCE: Final = 4
_PARTS: Final = ("inputs", "targets", "weights")

# Of an epoch and a batch's number in it: the batch, and the rows of the data that are in it.
Find: TypeAlias = Callable[[int, int], tuple[Any, Sequence[int] | None] | None]


@dataclasses.dataclass(frozen=True)
class BadBatch:
    """A batch whose step failed because some of its examples are not finite.

    Attributes:
        epoch: Number of the epoch, from 0.
        batch: Number of the batch in it, from 0.
        examples: For each bad example, its place in the batch, from 0, and its array: `"inputs"`,
            `"targets"` or `"weights"`, with a number if there are several.
        rows: The same examples as rows of the arrays passed to `training.train`; else empty.
    """

    epoch: int
    batch: int
    examples: tuple[tuple[int, str], ...]
    rows: tuple[int, ...] = ()

    def __str__(self) -> str:
        named = [f"example {place} ({part})" for place, part in self.examples]
        if self.rows:
            named = [
                f"row {row} of the data ({part})"
                for row, (_, part) in zip(self.rows, self.examples, strict=True)
            ]
        more = f" and {len(named) - 5} more" if len(named) > 5 else ""
        return (
            f"Batch {self.batch} of epoch {self.epoch + 1} is not finite: "
            f"{', '.join(named[:5])}{more}. It makes its step fail each time. "
            "`gradstab.data.BadExamples` leaves such examples out, and keeps the rest of the batch"
        )


class FailedSteps:
    """Tells which steps of an epoch were skipped, or had a loss that is not finite.

    Args:
        optimizer: The optimizer, if it is gradstab's. Of the micro-batches of a window it is not
            known which one had it skipped, and none is told.
        noted: The losses of its steps, if it is another.
    """

    def __init__(self, optimizer: Any | None, noted: StepLosses | None) -> None:
        is_told = optimizer is not None and window_size(optimizer.inner_optimizer) == 1
        self._telemetry = optimizer.telemetry if optimizer is not None and is_told else None
        self._noted = noted
        self._begun = self._cursor = 0

    def begin_epoch(self) -> None:
        """Count from here on."""
        if self._telemetry is not None:
            self._begun = self._cursor = self._telemetry.peek().cursor
        elif self._noted is not None:
            self._begun = self._cursor = self._noted.count

    def read(self) -> list[int]:
        """Return the numbers of those since the last time, from 0 in this epoch."""
        if self._telemetry is not None:
            reading = self._telemetry.peek(since=self._cursor)
            self._cursor = reading.cursor
            failed = reading.steps[reading.skipped] - 1
        elif self._noted is not None:
            numbers, losses = self._noted.since(self._cursor)
            self._cursor = self._noted.count
            failed = numbers[~np.isfinite(losses)]
        else:
            return []
        return [int(number) - self._begun for number in failed]


class BadBatches:
    """Looks for what is not finite in the batches of failed steps.

    Args:
        model: The model that is trained.
        failed: Tells the steps.
        tell: Called with each batch that is found.
    """

    def __init__(self, model: Any, failed: FailedSteps, tell: Callable[[BadBatch], None]) -> None:
        self._model = model
        self._failed = failed
        self._tell = tell
        self._find: Find | None = None
        self._epoch = self._looked_at = 0
        self._suspects: set[int] = set()
        self._known: set[Any] = set()

    def find_by(self, find: Find) -> None:
        """Have batches shown by a function."""
        self._find = find

    def begin_epoch(self, epoch: int) -> None:
        """Count the batches of an epoch."""
        self._epoch = epoch
        self._failed.begin_epoch()

    def look(self) -> None:
        """Look at the batches of the latest failed steps, or wait for them to come again."""
        failed = [number for number in self._failed.read() if number >= 0]
        for number in failed[:_MOST_AT_ONCE]:
            if self._find is None:
                self._suspects.add(number)
            elif self._looked_at < _MOST:
                self._looked_at += 1
                found = self._find(self._epoch, number)
                if found is not None:
                    self._name(self._epoch, number, *found)

    def before(self, batch: int) -> None:
        """Have `fit` show a batch at whose place a step failed in an earlier epoch."""
        if batch in self._suspects and self._looked_at < _MOST:
            self._suspects.remove(batch)
            self._looked_at += 1
            epoch = self._epoch
            FirstBatch(lambda data: self._name(epoch, batch, data, None), most=None).await_from(
                self._model
            )

    def _name(self, epoch: int, number: int, batch: Any, rows: Sequence[int] | None) -> None:
        examples = bad_examples_of(batch)
        key = number if rows is None else frozenset(rows[place] for place, _ in examples)
        if not examples or key in self._known:
            return
        self._known.add(key)
        places = () if rows is None else tuple(int(rows[place]) for place, _ in examples)
        self._tell(BadBatch(epoch, number, tuple(examples), places))


def bad_examples_of(batch: Any) -> list[tuple[int, str]]:
    """Return the examples of a batch that are not finite, by place and array.

    Args:
        batch: `(x, y, sample_weight)`, or less of it, each an array or a structure of arrays with
            examples along the first axis.
    """
    found: list[tuple[int, str]] = []
    for part, structure in zip(_PARTS, keras.utils.unpack_x_y_sample_weight(batch), strict=True):
        leaves = [leaf for leaf in keras.tree.flatten(structure) if leaf is not None]
        for place, leaf in enumerate(leaves):
            array = np.asarray(leaf)
            if not array.ndim or not np.issubdtype(array.dtype, np.floating):
                continue
            bad = ~np.isfinite(array.reshape(len(array), -1)).all(axis=1)
            name = part if len(leaves) == 1 else f"{part} {place}"
            found += [(int(row), name) for row in np.flatnonzero(bad)]
    return sorted(found)
