"""The steps since the last look of a recovery: their losses, and how many were skipped."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from gradstab.recovery.judge import Judge
from gradstab.recovery.step_losses import StepLosses
from gradstab.recovery.troubles import Trouble
from gradstab.recovery.veto import Veto

# Shares of the steps that rules such as `LimitOvershoot` cut short: from the first on they alone
# hold the run, and up to the second they leave it alone, as they do a healthy one.
_HELD: Final = 0.8
_FREE: Final = 0.2


class Window:
    """Counts the steps since the last look, and keeps the losses of those that were applied.

    Args:
        judge: Judges the run, and has read the telemetry of its optimizers.
        noted: The losses of steps of an optimizer that is not gradstab's, or `None`.
        veto: What skips steps of such an optimizer, or `None`.

    Attributes:
        begun: Steps of the run up to the last look, dropped ones counted.
        counted: Steps since that telemetry counted: windows, where gradients are accumulated.
        losses: Losses of the applied steps since.
        skipped: How many steps were skipped since.
        limited: How many were limited by a rule.
        has_failed: Whether any step of the run was skipped, or had a loss that is not finite.
    """

    def __init__(self, judge: Judge, noted: StepLosses | None, veto: Veto | None) -> None:
        self._judge = judge
        self._noted = noted
        self._veto = veto
        self._skipped_before = 0
        self._was_held = self._was_free = False
        self.begun = 0
        self.losses: list[float] = []
        self.skipped = self.limited = self.counted = 0
        self.has_failed = False

    def steps(self, step: int) -> int:
        """Return how many steps there were since, as `skipped` and `limited` count them."""
        return self.counted or step - self.begun

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
            self.counted += len(reading.skipped)
            self.skipped += int(np.sum(reading.skipped))
            self.limited += int(np.sum(reading.limited))
            self.has_failed |= self.skipped > 0

    def is_held(self, step: int) -> bool:
        """Whether limits alone hold the run, which was free of them before.

        Args:
            step: Steps of the run up to now.
        """
        return self._was_free and self.limited > _HELD * self.steps(step)

    def held(self, step: int) -> Trouble | None:
        """Return that limits hold the run since the look before the last, or `None`."""
        if not self.is_held(step) or not self._was_held:
            return None
        return Trouble(
            "held_by_limits",
            f"{self.limited} of the last {self.steps(step)} steps had to be cut short by the "
            "rules of the optimizer, which left the run alone before: the learning rate has become "
            "too high.",
            is_seen_at_once=False,
        )

    def begin(self, step: int) -> None:
        """Count from here on."""
        self._was_held = self.is_held(step)
        self._was_free |= self.limited <= _FREE * self.steps(step)
        self.begun, self.losses = step, []
        self.skipped = self.limited = self.counted = 0
        if self._veto is not None:
            self._skipped_before = self._veto.skipped()

    def state(self) -> list[Any]:
        """Return what a resumed run goes on with."""
        counts = [self.begun, self.counted, self.skipped, self.limited, self._skipped_before]
        return [*counts, self._was_held, self._was_free, *self.losses]

    def resume(self, state: list[Any]) -> None:
        """Go on with what `state` returned."""
        self.begun, self.counted, self.skipped, self.limited, self._skipped_before = state[:5]
        self._was_held, self._was_free = state[5:7]
        self.losses = list(map(float, state[7:]))
