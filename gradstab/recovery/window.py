"""The steps since the last look of a recovery: their losses, and how many were skipped."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradstab.recovery.judge import Judge
from gradstab.recovery.step_losses import StepLosses
from gradstab.recovery.veto import Veto


class Window:
    """Counts the steps since the last look, and keeps the losses of those that were applied.

    Args:
        judge: Judges the run, and has read the telemetry of its optimizers.
        noted: The losses of steps of an optimizer that is not gradstab's, or `None`.
        veto: What skips steps of such an optimizer, or `None`.

    Attributes:
        begun: Steps of the run up to the last look, dropped ones counted.
        losses: Losses of the applied steps since.
        skipped: How many steps were skipped since.
        has_failed: Whether any step of the run was skipped, or had a loss that is not finite.
    """

    def __init__(self, judge: Judge, noted: StepLosses | None, veto: Veto | None) -> None:
        self._judge = judge
        self._noted = noted
        self._veto = veto
        self._skipped_before = 0
        self.begun = 0
        self.losses: list[float] = []
        self.skipped = 0
        self.has_failed = False

    def take_in(self) -> None:
        """Take in the latest steps."""
        if self._noted is not None:
            losses = self._noted.read()
            self.has_failed |= not np.isfinite(losses).all()
            self._judge.see_losses(losses)
            self.losses += losses.tolist()
            self.skipped = 0 if self._veto is None else self._veto.skipped() - self._skipped_before
        elif self._judge.watched:
            reading = self._judge.watched[0].latest
            self.losses += reading.loss[~reading.skipped].tolist()
            self.skipped += int(np.sum(reading.skipped))
            self.has_failed |= self.skipped > 0

    def begin(self, step: int) -> None:
        """Count from here on."""
        self.begun, self.losses, self.skipped = step, [], 0
        if self._veto is not None:
            self._skipped_before = self._veto.skipped()

    def state(self) -> list[Any]:
        """Return what a resumed run goes on with."""
        return [self.begun, self.skipped, self._skipped_before, *self.losses]

    def resume(self, state: list[Any]) -> None:
        """Go on with what `state` returned."""
        self.begun, self.skipped, self._skipped_before = state[:3]
        self.losses = list(map(float, state[3:]))
