"""Seconds that a diagnosis may still take."""

from __future__ import annotations

import math
import time


class Clock:
    """Seconds of work: of the wall, or of the processor where other programs hold it up.

    Args:
        limit: Seconds of work.
        wall: Seconds that may pass at most, however held up.
    """

    def __init__(self, limit: float, wall: float = math.inf) -> None:
        self._limit, self._most = limit, wall
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def seconds(self) -> float:
        """Return the seconds of work since the beginning."""
        return min(time.perf_counter() - self._wall, time.process_time() - self._processor)

    def left(self) -> float:
        """Return the seconds that are left."""
        passed = time.perf_counter() - self._wall
        return min(self._limit - self.seconds(), self._most - passed)
