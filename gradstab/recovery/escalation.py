"""Chooses the snapshot and the cut of the rate: further back and lower with each relapse."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

from gradstab.recovery.troubles import Trouble

# What the rate is multiplied by: half at first, then a fifth of that each time.
LEVELS: Final = (1.0, 0.5, 0.1, 0.02, 0.004, 0.0008)
# Steps without trouble after which it counts as overcome, and a cut goes back by one level. Of the
# same length as in arc-training 5.2.
CALM_STEPS: Final = 500


@dataclasses.dataclass(frozen=True)
class Rollback:
    """A rollback to carry out.

    Attributes:
        back: Number of snapshots to go back beyond the latest good one.
        factor: Factor on the learning rate from now on.
    """

    back: int
    factor: float


class Escalation:
    """Decides what follows trouble, and what follows calm.

    The first rollback leaves the rate alone if the run was calm with it before, or if it can't be
    the cause; where nothing else is, it cuts by several levels. Each relapse goes back one snapshot
    further and cuts the rate by one level more. A cut is undone level by level. If trouble comes
    back with the rate, the level before is kept for good, and so is the cut of a rate with which
    nothing was ever learned.

    Args:
        max_rollbacks: Rollbacks without `CALM_STEPS` calm steps in between; then there is no more.

    Attributes:
        relapses: Rollbacks since the last calm.
    """

    def __init__(self, max_rollbacks: int) -> None:
        self._max_rollbacks = max_rollbacks
        self._last = 0
        self._level = self._lowest_level = 0
        self._is_on_trial = False
        self.relapses = 0

    @property
    def factor(self) -> float:
        """What the rate is multiplied by."""
        return LEVELS[self._level]

    def on_trouble(self, trouble: Trouble, step: int, *, was_calm: bool) -> Rollback | None:
        """Return what to do, or `None` if that was tried often enough.

        Args:
            trouble: What is wrong.
            step: Steps of this run.
            was_calm: Whether the run was ever calm for a while.
        """
        if self.relapses >= self._max_rollbacks:
            return None
        if self.relapses or trouble.levels or (trouble.may_be_rate and not was_calm):
            self._level = min(self._level + max(1, trouble.levels), len(LEVELS) - 1)
            if self._is_on_trial or trouble.levels:
                self._lowest_level = self._level
        self._is_on_trial = False
        rollback = Rollback(self.relapses, self.factor)
        self.relapses += 1
        self._last = step
        return rollback

    def on_calm(self, step: int) -> float | None:
        """Return what the rate is to be multiplied by from now on, or `None` for no change."""
        if step - self._last < CALM_STEPS:
            return None
        self._last, self.relapses = step, 0
        self._is_on_trial = self._level > self._lowest_level
        if not self._is_on_trial:
            return None
        self._level -= 1
        return self.factor

    def state(self) -> list[Any]:
        """Return what a resumed run goes on with."""
        return [self._level, self._lowest_level, self._is_on_trial, self.relapses, self._last]

    def resume(self, state: list[Any]) -> None:
        """Go on with what `state` returned."""
        level, lowest, self._is_on_trial, self.relapses, self._last = state
        highest = len(LEVELS) - 1
        self._level, self._lowest_level = min(max(level, 0), highest), min(max(lowest, 0), highest)
