"""The interface of data for the compiled loop: epochs to run, and the structure of a batch.

The order of the data is a function of seed and epoch, so that a resumed run sees what the
uninterrupted one does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from gradstab.training.strategy import StepLoop


class Epoch(Protocol):
    """One pass over the data, taken in pieces."""

    def trace(self, loop: StepLoop) -> None:
        """Make `loop` trace its function for these batches, and run no step."""
        ...

    def skip(self, count: int) -> None:
        """Leave out the next batches, on which steps were run before the run was resumed."""
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

    def batch(self, epoch: int, number: int) -> tuple[Any, Sequence[int] | None] | None:
        """Return a batch of an epoch, and the rows of the arrays that it holds, if it has such.

        `None` where it can't be had without using it up.
        """
        ...

    def fingerprint(self) -> str | None:
        """Return what tells these data from others, or `None` where nothing does."""
        ...
