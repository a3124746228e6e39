"""Compares the trainings of a trial: which change heals, by how much, alone or with another."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Final

from gradstab.diagnosis.looks.bundle import Looks
from gradstab.diagnosis.looks.trial import Run, TrialLook, learned, projected

# Merit by which a change must be better than the plan to be called a remedy.
CLEAR: Final = 0.2
# Merit of a plan cut short from which on it may get there by itself.
_UNDECIDED: Final = 0.2
# Merit of a plan that learned nothing, and of one that learned little; what counts as a beginning.
_NOTHING: Final = 0.03
_LITTLE: Final = 0.1
_BEGINNING: Final = 0.06
_TIMES: Final = 2.5
# How many times smaller the part not learned must be for a change of a plan that learned some.
_REST: Final = 1.6
# Share of the gain of another rate from which on another change is as good a remedy.
_AS_GOOD: Final = 0.9
_MENDING: Final = ("inputs", "targets", "start", "relu")
# Share of the gain of the best change that others need to be named beside it.
_BESIDE: Final = 0.5
# Merit by which two changes together must beat either.
_TOGETHER: Final = 0.12


@dataclasses.dataclass(frozen=True)
class Healing:
    """A change that made the trial learn clearly better.

    Attributes:
        cause: What was changed: `"rate"`, `"inputs"`, `"targets"`, `"start"`, `"longer"`,
            `"penalty"`, `"relu"`, `"dropout"`, `"wider"` or `"adam"`.
        run: The training.
        gain: Merit beyond that of the plan.
        factor: Factor on the rate, 1 where it was not changed.
        partner: What else was changed in that run, or `None`.
    """

    cause: str
    run: Run
    gain: float
    factor: float = 1.0
    partner: str | None = None


def learns(trial: TrialLook) -> bool:
    """Whether the plan's own training learned well enough to be left alone."""
    return learned(trial)


def healings(looks: Looks) -> list[Healing]:
    """Return the changes that heal, the one with the largest gain first."""
    trial = looks.trial
    plan = trial.plan
    if plan is None:
        return []
    base = max(plan.merit, projected(trial))
    if learns(trial):
        # First weights far off are a fault by themselves, where others learn clearly more.
        start = trial.run("start")
        is_fault = start is not None and _is_clear(start, plan, base, ["start"])
        return [Healing("start", start, start.merit - base)] if start and is_fault else []
    if (trial.run("whole") or plan).steps < (trial.planned_steps or math.inf) and base > _UNDECIDED:
        return []  # it learned some in a part of its steps, and who knows how far it gets
    single: dict[str, Healing] = {}
    pairs: list[Healing] = []
    for run in trial.runs[1:]:
        if run.change == "whole":
            continue
        causes, factor = _parts(run.change)
        if not _is_clear(run, plan, base, causes):
            continue
        gain = run.merit - base
        if len(causes) == 1:
            best = single.get(causes[0])
            if best is None or gain > best.gain + 0.02:
                single[causes[0]] = Healing(causes[0], run, gain, factor)
        else:
            pairs.append(Healing(causes[0], run, gain, factor, causes[1]))
    best_single = max((each.gain for each in single.values()), default=0.0)
    found = {cause: each for cause, each in single.items() if each.gain >= _BESIDE * best_single}
    together = max(pairs, key=lambda each: each.gain, default=None)
    if together is not None and together.gain > best_single + _TOGETHER:
        alone = single.get(together.cause)
        # Scaled inputs are what lets another rate work. Of first weights that is so only where they
        # learn something by themselves.
        is_first = together.cause != "start" or (alone is not None and alone.run.merit > CLEAR)
        rest = dataclasses.replace(
            together,
            cause=together.partner or "",
            partner=together.cause,
            gain=together.gain + (-0.01 if is_first else 0.01),
        )
        found = {together.cause: together, rest.cause: rest}
    # Where the plan's own rate works once something else is changed, the rate is not at fault.
    rate, others = found.get("rate"), [e for e in found.values() if e.cause in _MENDING]
    if rate is not None and rate.partner is None and plan.finite and base < _LITTLE:
        mended = [each for each in others if each.partner is None]
        if any(each.gain >= _AS_GOOD * rate.gain for each in mended):
            del found["rate"]
    return sorted(found.values(), key=lambda each: -each.gain)


def _is_clear(run: Run, plan: Run, base: float, causes: list[str]) -> bool:
    """Whether a run learned so much more than the plan that its change is a remedy."""
    if run.merit < base + CLEAR:
        # Where the plan learned next to nothing, a beginning several times as good is enough.
        is_more = run.merit > base + _BEGINNING and run.merit > _TIMES * max(base, _NOTHING)
        return plan.finite and base < _LITTLE and is_more
    if run.merit < _BEGINNING:
        # Not yet learned, but no longer many times worse than a constant answer.
        is_calm = run.finite and run.end.explained > -0.15 and plan.end.explained < -0.5
        return is_calm and bool({"inputs", "targets", "start"} & set(causes))
    return base < _LITTLE or (1 - base) > _REST * (1 - run.merit)


def healing(looks: Looks, cause: str) -> Healing | None:
    """Return the healing by that change, if there is one."""
    return next((each for each in healings(looks) if each.cause == cause), None)


def _parts(change: str) -> tuple[list[str], float]:
    factor = 1.0
    found = re.search(r"rate([*/])(\d+)$", change)
    if found:
        factor = float(found[2]) if found[1] == "*" else 1 / float(found[2])
    return [re.sub(r"[*/]\d+$", "", part) for part in change.split(", ")], factor
