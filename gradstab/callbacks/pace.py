"""When a monitor looks: reading holds the steps up for a millisecond or two."""

from __future__ import annotations

import math
import time
from typing import Final

from gradstab.optimizers.telemetry.reading import CAPACITY

# Where steps are short, not at each sample.
_SECONDS_BETWEEN_LOOKS: Final = 1.0


class Pace:
    """Counts the steps of a run and says when it is time to look.

    Args:
        every_n_steps: Steps between two samples.
        at_each: Whether each sample has to be read before the next: what goes with it is not kept.
    """

    def __init__(self, every_n_steps: int, *, at_each: bool) -> None:
        self._every_n_steps = every_n_steps
        self._at_each = at_each
        self._before, self._last_batch, self._looked_at = 0, -1, 0
        self._looked = -math.inf
        self.set_capacity(2)

    def set_capacity(self, samples: int) -> None:
        """Say how many samples can wait on the device."""
        most = max(1, samples // 2) * self._every_n_steps
        self._most_unread = min(CAPACITY // 2, most)
        self._least_unread = min(self._most_unread, self._every_n_steps)

    def begin_epoch(self) -> None:
        """Count batches anew."""
        self._before, self._last_batch = self._steps, -1
        if self._looked_at:  # All was read when the last epoch ended, however long ago that is.
            self._looked = time.monotonic()

    def see(self, batch: int) -> None:
        """Take in the number of a batch."""
        self._last_batch = max(self._last_batch, batch)

    def looked(self) -> None:
        """Take in that all was read by now."""
        self._looked_at, self._looked = self._steps, time.monotonic()

    def is_time(self) -> bool:
        """Whether to look."""
        unread = self._steps - self._looked_at
        if unread < self._least_unread:
            return False
        if self._at_each or unread >= self._most_unread:
            return True
        return time.monotonic() - self._looked >= _SECONDS_BETWEEN_LOOKS

    @property
    def _steps(self) -> int:
        """Steps of this run, as far as the loop has told."""
        return self._before + self._last_batch + 1
