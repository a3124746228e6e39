"""Decides from the losses of a run whether its last steps have to be rolled back.

One bad batch, a warm restart or noise lifts the loss for some steps, and then it comes down by
itself. So it has to stay up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from gradstab.recovery.troubles import Trouble

# Losses of a look of which the lower quarter has to be up.
_LATEST: Final = 25
# Less than these are too few to say anything.
_FEWEST: Final = 8
# The last few, of which the middle one must not be up if the state is to be kept.
_LAST: Final = 5
# How much of what was learned may come back, and how far above the highest calm loss one may be.
_LOST: Final = 0.8
_ABOVE: Final = 3.0
# The first loss is that of the first weights, by luck a small one: those after it may be so much
# larger.
_EXPLODED: Final = 1e3
# The least that has to be learned first, of the first loss, and in deviations of the noise.
_LEARNED: Final = 0.3
_DEVIATIONS: Final = 6.0
# The part of the first loss that no loss has to be below, for nothing to be learned.
_LEARNED_NOTHING: Final = 0.95
# A loss so many times the highest calm one is a spike, which no healthy step makes.
_SPIKE: Final = 10.0
# Calm looks whose highest losses those after a spike are compared with.
_RECENT: Final = 3
# Losses before one that is not finite that have to be there, and how much the last may have risen.
_BEFORE: Final = 3


class LossWatch:
    """Tells a loss that stays where it was before anything was learned, or far above all before."""

    def __init__(self) -> None:
        self._first: float | None = None
        self._start: list[float] = []
        self._best = math.inf
        self._highest = -math.inf
        self._spread = 0.0
        self._latest: list[float] = []
        self._was_up: float | None = None
        self._recent: list[float] = []
        self._spike: float | None = None
        self._after_spike: list[float] = []

    def has_learned(self, losses: Sequence[float]) -> bool:
        """Whether the latest losses are below the first, and none of them was far above it."""
        new = [loss for loss in losses if math.isfinite(loss)]
        if self._first is None and losses:
            self._first = losses[0]
        if self._first is None or not math.isfinite(self._first) or len(new) < _FEWEST:
            return True  # Nothing to compare with.
        low = min(float(np.quantile(new[-_LATEST:], 0.25)), self._best)
        is_below = low < self._first - (1 - _LEARNED_NOTHING) * abs(self._first)
        return is_below and max(new) <= _ABOVE * abs(self._first)

    @property
    def is_up(self) -> bool:
        """Whether, be it for a moment, the latest losses are above all that a healthy run shows."""
        return self._was_up is not None

    @property
    def is_high(self) -> bool:
        """Whether the last few losses are far above those of the last calm looks."""
        recent = max(self._recent, default=math.inf)
        last = self._latest[-_LAST:]
        return bool(last) and float(np.median(last)) > recent + (_ABOVE - 1) * abs(recent)

    @property
    def is_calm(self) -> bool:
        """Whether they are as they were, the last few too: no spike has just begun."""
        if self._spike is not None or len(self._latest) < _FEWEST:
            return self._spike is None and not self.is_up
        return not self.is_up and float(np.median(self._latest[-_LAST:])) <= self._limit()

    def see(self, losses: Sequence[float]) -> Trouble | None:
        """Take in the losses of applied steps since the last look; return what they tell."""
        new = [loss for loss in losses if math.isfinite(loss)]
        self._latest = [*self._latest, *new][-_LATEST:]
        if len(self._latest) < _FEWEST or not new:
            return None
        if not self._start:
            self._start = new[:_FEWEST]
            # With a rate too high they explode within these few.
            self._highest = min(max(self._start), _EXPLODED * abs(new[0]) + 1.0)
        trouble = self._after_a_spike(new)
        if trouble is not None:
            return trouble
        low, middle = np.quantile(self._latest, [0.25, 0.5]).tolist()
        limit = self._limit()
        if low <= limit:
            self._was_up = None
            return None
        before, self._was_up = self._was_up, middle
        # It has to stay there, and not to be on its way down again.
        if before is None or middle < 0.8 * before:
            return None
        return Trouble(
            "loss_stays_up",
            f"The loss stays at {middle:.3g}, where it was {self._best:.3g} at its best and "
            f"{np.median(self._start):.3g} when training began.",
            is_seen_at_once=False,
        )

    def keep(self) -> None:
        """Take the latest losses for calm."""
        if len(self._latest) < _FEWEST:
            return
        middle = float(np.median(self._latest))
        high = float(np.quantile(self._latest, 0.95))
        self._highest = max(self._highest, high)
        self._recent = [*self._recent, high][-_RECENT:]
        if middle < self._best:
            self._best = middle
            self._spread = float(np.median(np.abs(np.array(self._latest) - middle)))

    def told(self) -> str:
        """Return where the loss is, in words."""
        if not self._latest or not math.isfinite(self._best):
            return "by the state"
        now = float(np.median(self._latest))
        return f"at a loss of {now:.3g}, where {self._best:.3g} was its best"

    def forget(self) -> None:
        """Forget the latest losses: their steps were taken back."""
        self._latest, self._was_up = [], None
        self._spike, self._after_spike = None, []

    def state(self) -> list[Any]:
        """Return what a resumed run goes on with."""
        known = [self._first, self._best, self._highest, self._spread, self._was_up]
        lists = [self._start, self._latest, self._recent, self._after_spike]
        return [*known, self._spike, *lists]

    def resume(self, state: list[Any]) -> None:
        """Go on with what `state` returned."""
        self._first, self._best, self._highest, self._spread, self._was_up, self._spike = state[:6]
        self._start, self._latest, self._recent, self._after_spike = state[6:]

    def _after_a_spike(self, losses: Sequence[float]) -> Trouble | None:
        """Tell that the losses after one far above all stay above those of the last calm looks.

        By themselves they may come down to where the run was long ago, and learn that once more.
        """
        for loss in losses:
            if loss > self._highest + (_SPIKE - 1) * abs(self._highest):
                self._spike, self._after_spike = loss, []
            elif self._spike is not None:
                self._after_spike.append(loss)
        if self._spike is None or len(self._after_spike) < _FEWEST:
            return None
        spike, middle = self._spike, float(np.median(self._after_spike))
        self._spike, self._after_spike = None, []
        recent = max(self._recent, default=math.inf)
        if middle <= recent + (_ABOVE - 1) * abs(recent):
            return None
        return Trouble(
            "spike_stays",
            f"A loss of {spike:.3g} was followed by losses of {middle:.3g}, where {recent:.3g} was "
            "the highest of the last calm ones.",
        )

    def _limit(self) -> float:
        """Return what the lower quarter of the latest losses must not be above."""
        start = float(np.median(self._start))
        learned = start - self._best if math.isfinite(self._best) else 0.0
        far = self._highest + (_ABOVE - 1) * abs(self._highest)
        if learned > _LEARNED * abs(start) and learned > _DEVIATIONS * self._spread:
            return min(far, self._best + _LOST * learned)
        return far


def fell_out_of_the_blue(losses: Sequence[float]) -> bool:
    """Whether the first loss that is not finite came after losses that had not risen.

    That is what bad data does. A rate that is too high has the loss rise first.
    """
    finite = np.isfinite(losses)
    before = list(losses)[: len(losses) if finite.all() else int(np.argmin(finite))]
    if len(before) < _BEFORE:
        return False
    return max(before[-_BEFORE:]) <= _ABOVE * abs(before[0])
