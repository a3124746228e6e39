"""Detects faults of a run and describes them, for a `DivergenceGuard`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gradstab.diagnosis.origin.bad_steps import BadSteps
from gradstab.optimizers.stabilized import StabilizedOptimizer
from gradstab.optimizers.telemetry.reading import Reading
from gradstab.optimizers.watching.find import optimizers_of, stabilized_optimizer
from gradstab.recovery.causes import (
    Cause,
    of_divergence,
    of_nothing_applied,
    of_zero_gradient,
)
from gradstab.recovery.explosion import Explosion, nonnegative_loss
from gradstab.recovery.liveness import Liveness, stopping_layer
from gradstab.recovery.moving_statistics import MovingStatistics
from gradstab.recovery.state import RunState

# Steps between two looks at most, where the budget for skips is larger or there is none.
_MOST_STEPS = 50


class Watched:
    """One optimizer of gradstab's in a run.

    Args:
        name: Its name in the model.
        optimizer: The optimizer.

    Attributes:
        losses: Losses of the steps of this epoch that were applied, as far as they were shown.
        latest: The latest reading.
        has_moved: Whether a gradient was ever other than zero, or had to be zero.
    """

    def __init__(self, name: str, optimizer: StabilizedOptimizer) -> None:
        self.name = name
        self.optimizer = optimizer
        self.losses: list[float] = []
        begun = optimizer.telemetry.peek()
        self._begun = self._cursor = begun.cursor
        self._skipped_before = begun.total_skipped
        self.latest = begun
        self.has_moved = False

    def read(self) -> tuple[Reading, Any]:
        """Return what happened since the last time, and which of these steps were applied."""
        self.latest = reading = self.optimizer.telemetry.peek(since=self._cursor)
        self._cursor = reading.cursor
        applied = ~reading.skipped
        losses = reading.loss[applied]
        self.losses += losses[np.isfinite(losses)].tolist()
        self.has_moved |= reading.shows_gradient
        return reading, applied

    @property
    def steps(self) -> int:
        """Steps of this run."""
        return self.latest.cursor - self._begun

    @property
    def skipped(self) -> int:
        """How many of them were skipped."""
        return self.latest.total_skipped - self._skipped_before


class Judge:
    """Judges one run of a model.

    Args:
        model: The model that is trained.

    Attributes:
        state: The state of the run.
        watched: Its optimizers of gradstab's.
        bad_steps: Its steps that were not finite; to be left when the run ends.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        optimizers = optimizers_of(model)
        self.state = RunState(model, optimizers)
        named = {name: stabilized_optimizer(each) for name, each in optimizers.items()}
        self.watched = [Watched(name, ours) for name, ours in named.items() if ours is not None]
        self._explosion = Explosion(nonnegative_loss(model))
        self._liveness = Liveness(model)
        self._statistics = MovingStatistics(model)
        self._has_first_loss = False
        self.bad_steps = BadSteps.join(model)

    @property
    def steps_between_looks(self) -> int:
        """About how often a run of skips can exceed its budget."""
        budgets = [each.optimizer.max_consecutive or 1 for each in self.watched]
        return min([_MOST_STEPS, *budgets])

    @property
    def applied(self) -> int | None:
        """Steps that were applied in this run; `None` where nothing counts them."""
        if not self.watched:
            return None
        return sum(each.steps - each.skipped for each in self.watched)

    @property
    def is_lost(self) -> bool:
        """Whether, be it for a moment, what was learned is gone: no state to keep."""
        return self._liveness.is_lost or self._statistics.is_spoiled

    def can_be(self, loss: float) -> bool:
        """Whether a loss can have this value: a cross-entropy is not below zero."""
        return loss >= 0 or self._explosion.nonnegative_loss is None

    def begin_epoch(self) -> None:
        """Begin to count the losses of an epoch."""
        for each in self.watched:
            each.losses = []
        self._liveness.await_batch()

    def see_examples(self, batch: Any) -> None:
        """Take in a batch to look at the model with, of which some examples are kept."""
        self._liveness.see_batch(batch)

    @property
    def wants_first_loss(self) -> bool:
        """Whether the first loss is to be taken from the logs, since no telemetry has it."""
        return not self.watched and not self._has_first_loss

    def see_first_loss(self, loss: float) -> None:
        """Take in the first loss that the logs hold."""
        self._has_first_loss = True
        self._explosion.see_first_loss(loss)

    def loss_of_applied_steps(self) -> float:
        """Return the mean loss of the steps of this epoch that were applied, NaN if not known."""
        losses = [loss for each in self.watched for loss in each.losses]
        return float(np.mean(losses)) if losses else math.nan

    def see_losses(self, losses: Any) -> None:
        """Take in the losses of steps that no telemetry has."""
        self._explosion.see_steps(losses, [])

    def look_is_lost(self) -> bool:
        """Look at the model on the examples, and return whether what was learned is gone."""
        self._liveness.look()
        return self._liveness.is_lost

    def forget(self) -> None:
        """Forget the latest steps, which were taken back; what is known of the run stays."""
        for each in self.watched:
            each.optimizer.telemetry.acknowledge()
        self._explosion.forget()
        self._liveness.forget()

    def after_steps(self) -> Cause | None:
        """Return what the latest steps tell, or `None` if all is well."""
        for each in self.watched:
            reading, applied = each.read()
            self.bad_steps.see(reading)
            if each is self.watched[0]:
                finite = np.isfinite(reading.loss) & applied
                self._explosion.see_steps(reading.loss[finite], reading.grad_norm[applied])
            divergence = reading.divergence
            if divergence is not None:
                every = each.optimizer.telemetry.peek()
                cause = of_divergence(
                    self._model, divergence, every, self.state.damage(), self.bad_steps.told()
                )
                named = cause.text if len(self.watched) == 1 else f"Of `{each.name}`: {cause}"
                return dataclasses.replace(cause, text=named)
        return _as_cause(self._explosion.told(), "explosion")

    def after_epoch(self, loss: float) -> Cause | None:
        """Return what an epoch tells, or `None` if all is well.

        Args:
            loss: Its loss as the logs have it; NaN where they have none.
        """
        return self._settled(loss, is_last=False)

    def at_end(self, loss: float) -> Cause | None:
        """Return what there is to tell when training ends, or `None` if all is well."""
        steps = sum(each.steps for each in self.watched)
        if steps and self.applied == 0:
            latest = [each.latest for each in self.watched if each.steps]
            return of_nothing_applied(steps, latest, self.state.damage(), self.bad_steps.told())
        cause = self._settled(loss, is_last=True) or _as_cause(
            self._statistics.told(), "spoiled_statistics"
        )
        if cause is not None:
            return cause
        if steps and not any(each.has_moved for each in self.watched):
            return of_zero_gradient(steps, stopping_layer(self._liveness.latest))
        told = self._liveness.never_learned()
        return None if told is None else Cause(told, goes_back=False, kind="never_learned")

    def no_better_than_constant(self, loss: float) -> str | None:
        """Return that the model is no better than a constant output, in words, or `None`.

        Args:
            loss: Mean loss of the last epoch.
        """
        return self._liveness.no_better_than_constant(loss)

    def _settled(self, loss: float, *, is_last: bool) -> Cause | None:
        cause = self.after_steps()
        if cause is not None:
            return cause
        damage = self.state.damage()
        if damage is not None:
            return Cause(f"{damage}{self.bad_steps.told()}", kind="nonfinite_state")
        told, kind = self._explosion.see_epoch(loss, is_last=is_last), "explosion"
        if told is None:
            self._liveness.look()
            self._statistics.look()
            told, kind = self._liveness.told(is_last=is_last), "forgotten"
        elif loss < 0 and self._explosion.told() is None:
            kind = "below_zero"
        return _as_cause(told, kind)


def _as_cause(text: str | None, kind: str) -> Cause | None:
    return None if text is None else Cause(text, kind=kind)


def value_of_logs(logs: Mapping[str, Any], name: str) -> float:
    """Return a number from the logs, NaN where there is none."""
    try:
        return float(logs.get(name, math.nan))
    except (TypeError, ValueError):
        return math.nan
