"""Counts and extremes over every step of a run, summed up as readings come in."""

from __future__ import annotations

from typing import Any, Final

import keras
import numpy as np

from gradstab._variables import value_of
from gradstab.keras_hooks.optimizer_state import counter, learning_rate_source
from gradstab.monitoring.entries import Totals
from gradstab.optimizers.step.learning_rate import rate_and_momentum
from gradstab.optimizers.telemetry.reading import Reading

# Steps at which a schedule is asked for its mean.
_POINTS: Final = 9


class RunTotals:
    """Sums up the readings of one optimizer.

    Counts are differences of the optimizer's own counters, so that they are right where nobody
    looked in time; extremes are those of the steps that were read.

    Args:
        begun: The reading with which the run began.
        optimizer: The optimizer, whatever wraps it.

    Attributes:
        calls_before: How often the optimizer had been called when the run began.
    """

    def __init__(self, begun: Reading, optimizer: Any) -> None:
        self._begun = self._latest = begun
        self._largest: tuple[float, int] | None = None
        self._best: tuple[float, int] | None = None
        self._last_loss: float | None = None
        self._shares, self._applied = 0.0, 0
        while hasattr(optimizer, "inner_optimizer"):
            optimizer = optimizer.inner_optimizer
        self._optimizer = optimizer
        self.calls_before = calls_of(optimizer)
        self._rate: float | None = None
        self._moves_by_length = False

    def see(self, reading: Reading) -> None:
        """Take in what happened since the last reading."""
        self._latest = reading
        norms, losses = reading.grad_norm, reading.loss
        self._largest = _better(self._largest, norms, reading.steps, 1)
        self._best = _better(self._best, losses, reading.steps, -1)
        applied = losses[~reading.skipped]
        if len(applied) and not np.isnan(applied).all():
            self._last_loss = float(applied[-1])
        known = np.isfinite(norms) & (norms > 0) & ~reading.skipped
        self._shares += float((reading.grad_norm_after[known] / norms[known]).sum())
        self._applied += int(known.sum())

    def see_rate(self) -> None:
        """Take in the learning rate as it is now, or of a schedule the mean since the run began."""
        self._rate, momentum = rate_and_momentum(self._optimizer)
        self._moves_by_length = momentum is not None
        if self._rate is None:
            return
        schedule = learning_rate_source(self._optimizer)
        if isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
            first = self.calls_before
            steps = np.linspace(first, max(first, calls_of(self._optimizer) - 1), _POINTS)
            self._rate = float(np.mean([float(schedule(int(step))) for step in steps]))

    @property
    def begun_at(self) -> int:
        """Steps that had been counted when the run began."""
        return self._begun.cursor

    @property
    def totals(self) -> Totals:
        """The totals up to now."""
        now, begun = self._latest, self._begun
        share = self._shares / self._applied if self._applied else 1.0
        scale = share if self._moves_by_length else 1.0
        return Totals(
            steps=now.cursor - begun.cursor,
            clipped=now.total_clipped - begun.total_clipped,
            limited=now.total_limited - begun.total_limited,
            skipped=now.total_skipped - begun.total_skipped,
            limited_by=_since(now.total_limited_by, begun.total_limited_by),
            skipped_by=_since(now.skipped_by_cause, begun.skipped_by_cause),
            largest_norm=None if self._largest is None else self._largest[0],
            largest_norm_step=None if self._largest is None else self._largest[1],
            best_loss=None if self._best is None else self._best[0],
            best_loss_step=None if self._best is None else self._best[1],
            last_loss=self._last_loss,
            learning_rate=self._rate,
            effective_rate=None if self._rate is None else self._rate * scale,
        )


def calls_of(optimizer: Any) -> int:
    """Return how often an optimizer has been called, micro-batches one by one."""
    return int(value_of(counter(optimizer)).numpy())


def _better(
    best: tuple[float, int] | None, values: Any, steps: Any, sign: int
) -> tuple[float, int] | None:
    """Return the largest (or for sign -1 the smallest) finite value so far, with its step."""
    finite = np.isfinite(values)
    if not finite.any():
        return best
    place = int(np.argmax(np.where(finite, sign * values, -np.inf)))
    value = float(values[place])
    if best is not None and sign * value <= sign * best[0]:
        return best
    return value, int(steps[place])


def _since(now: dict[str, int], begun: dict[str, int]) -> dict[str, int]:
    counts = {name: count - begun.get(name, 0) for name, count in now.items()}
    return {name: count for name, count in counts.items() if count}
