"""The look at the trial: short trainings on a copy of the state, each with one thing changed."""

from __future__ import annotations

import dataclasses
import math
from typing import Final

# Merit from which on a plan counts as learning: what rests on signals alone is then let go.
LEARNS: Final = 0.45
# What a classifier loses that is right but whose loss is that of a constant answer.
_TOO_SURE: Final = 0.2


@dataclasses.dataclass(frozen=True)
class Point:
    """How a training stood after some steps.

    Attributes:
        step: Steps done.
        explained: Share of the best constant output's loss that is gone, on rows kept aside.
        skill: What is right beyond guessing: of accuracy beyond the majority class, or R².
    """

    step: int
    explained: float
    skill: float


@dataclasses.dataclass(frozen=True)
class Run:
    """One short training.

    Attributes:
        change: What was changed, such as `"rate*10"`; `"plan"` for nothing.
        steps: Steps done.
        points: How it stood on the way, and at the end.
        first_loss: Loss of the first step.
        last_loss: Mean loss of the last fifth.
        worst_loss: Largest loss of a step.
        finite: Whether losses and weights stayed finite.
        losses: The loss over the steps, thinned out.
        update_ratio: Change of the weights in the first steps, per step, in units of the weights.
        output_variation: Deviation of the outputs from row to row at the end, in units of the
            targets'.
        fitted: Merit at the end on rows that were trained on, of the plan alone.
    """

    change: str
    steps: int
    points: tuple[Point, ...]
    first_loss: float = math.nan
    last_loss: float = math.nan
    worst_loss: float = math.nan
    finite: bool = True
    losses: tuple[float, ...] = ()
    update_ratio: float = math.nan
    output_variation: float = math.nan
    fitted: float = math.nan

    @property
    def end(self) -> Point:
        """How it stood at the end."""
        return self.points[-1] if self.points else Point(self.steps, -math.inf, -math.inf)

    @property
    def merit(self) -> float:
        """The better of both measures at the end, at least -1; -1 where it is not finite."""
        return self.merit_at(self.steps)

    def merit_at(self, step: float) -> float:
        """Return the merit after some steps, between points in proportion."""
        if not self.finite or not self.points:
            return -1.0
        before = self.points[0]
        for point in self.points:
            if point.step >= step:
                part = max((step - before.step) / max(point.step - before.step, 1), 0.0)
                return (1 - part) * merit(before) + part * merit(point)
            before = point
        return merit(before)


def merit(point: Point) -> float:
    """Return one number for a point: the share explained, and the skill where that is known.

    The loss alone would call a classifier bad that is right but too sure; the skill alone would
    not see a loss that is a thousand times too high.
    """
    # Below guessing an accuracy says nothing more, least of all on few rows.
    skill = max(point.skill, 0.0) if math.isfinite(point.skill) else math.nan
    values = [value for value in (point.explained, skill) if math.isfinite(value)]
    mean = max(-1.0, sum(values) / len(values)) if values else -1.0
    if point.explained > -1 and math.isfinite(skill):
        mean = max(mean, skill - _TOO_SURE)  # right, and not yet modest where it is wrong
    return mean


@dataclasses.dataclass(frozen=True)
class TrialLook:
    """What short trainings on a copy of the state showed.

    Attributes:
        runs: The trainings; the first is the plan itself.
        planned_steps: Steps of the whole plan, where it was told.
        batch_size: Rows of a step.
        constant_loss: Loss of the best constant output on the rows kept aside.
        penalty_share: Penalties in units of that loss, at the start.
        error: What kept the trial from being run, or `""`.
        skipped: Why no trial was run, or `""`.
        is_cut: Whether the time ended before all was tried.
    """

    runs: tuple[Run, ...] = ()
    planned_steps: int | None = None
    batch_size: int = 0
    constant_loss: float | None = None
    penalty_share: float = 0.0
    error: str = ""
    skipped: str = ""
    is_cut: bool = False

    @property
    def plan(self) -> Run | None:
        """The training as planned."""
        return self.run("plan")

    def run(self, change: str) -> Run | None:
        """Return the training with that change."""
        return next((each for each in self.runs if each.change == change), None)


def learned(trial: TrialLook) -> bool:
    """Whether the plan's own training learned well enough to be left alone."""
    return projected(trial) >= LEARNS


def projected(trial: TrialLook) -> float:
    """Return the merit at the end of the plan, as far as it can be told.

    Ten times the rate goes ten times as far in a step, as long as it is stable: where the trial is
    shorter than the plan, that run shows where the plan will be. Where there was time for it, the
    whole plan was run.
    """
    plan = trial.plan
    if plan is None:
        return -1.0
    whole = trial.run("whole")
    merits = [plan.merit, *([whole.merit] if whole is not None else [])]
    planned = trial.planned_steps or math.inf
    if planned > plan.steps and plan.finite and whole is None:
        for factor in (10, 100):
            run = trial.run(f"rate*{factor}")
            if run is None or not run.finite:
                break
            merits.append(run.merit_at(min(planned / factor, run.steps)))
            if planned / factor <= run.steps:
                break
    return max(merits)
