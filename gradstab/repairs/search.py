"""Searches for the recipe that helps: better ones train longer, each change is undone once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Final

from gradstab.repairs.prescriptions.base import Prescription
from gradstab.repairs.prescriptions.catalogue import CATALOGUE, named
from gradstab.repairs.trial import TRACE, Bench, Trial

# Shares of the plan after which the worse half goes.
_FIRST, _FULL = 0.25, 1.0
# A recipe that scores this in the end is taken, and no other one tried.
_ENOUGH: Final = 0.8
_MOST_ACTIONS: Final = 3
# A score from which on a net is called good.
GOOD: Final = 0.5
# Shares of the budget beyond the plain run: for first tries, and then for long ones.
_FOR_FIRST, _FOR_LONG = 0.5, 0.85
# What a net should be given where its findings say nothing, or what they say does not help. Three
# of these in a row go well together.
_USUAL: Final = (
    "ScaleInputs", "ScaleTargets", "FitHead", "SwapActivations", "WidenLayers", "UseAdam",
    "InsertNormalization", "SetLearningRate", "Reinitialize", "TrainLonger",
)  # fmt: skip
_LONGEST: Final = "TrainLonger"
# What is off scale hides all else; of data on unit scale these change nothing.
_SCALES: Final = ("ScaleInputs", "ScaleTargets")

Recipe = tuple[Prescription, ...]


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What a change was worth.

    Attributes:
        before: Score of the model as it was given.
        after: Score of the recipe, after the same share of training as `undone`.
        undone: Score of the recipe without the change.
    """

    before: float
    after: float
    undone: float


class Search:
    """A search within a budget of work.

    Work is counted in steps of training, and a trace as some hundred of them, so that what is tried
    depends on the arguments and not on how busy the machine is.

    Args:
        bench: Where drafts are tried.
        plain: The model as it was given, trained in full.
        budget: Work in multiples of that of the plain run, which is counted.
        seed: Draws the first weights of trainings in full. Those of first tries are others.
    """

    def __init__(self, bench: Bench, plain: Trial, budget: float, seed: int) -> None:
        self._bench, self._plain, self._seed = bench, plain, seed
        self._unit = TRACE + bench.planned_steps
        self._budget = budget - 1.0
        self._spent = 0.0
        self._seen: dict[tuple[str, ...], Trial] = {}

    @property
    def spent(self) -> float:
        """Work in multiples of the plain run, with that."""
        return 1.0 + self._spent / self._unit

    def best(self, recipes: Iterable[Recipe], margin: float) -> Trial | None:
        """Return the recipe that scores best in the end, or `None` if none could be tried.

        Args:
            recipes: What to try, the likeliest first.
            margin: Of scores that are no further apart, the one with fewer changes is taken.
        """
        tried: list[Trial] = []
        plain = self._plain.scores.get(_FIRST, self._plain.score)
        for recipe in recipes:
            if tried and self._is_over(_FOR_FIRST):
                break
            trial = self._tried(recipe)
            if trial is not None and trial not in tried:
                tried.append(trial)
                is_likely = len(tried) == 1 and trial.score > max(plain, 0.0) + margin
                if trial.score >= GOOD or is_likely:
                    self._finish(trial)
                if trial.score >= _ENOUGH:
                    return trial
        tried.sort(key=lambda trial: (-trial.score, len(trial.actions)))
        finished: list[Trial] = []
        for trial in tried[:2]:
            if finished and (self._is_over(_FOR_LONG) or trial.score <= plain):
                break
            if self._is_over(1.0) and trial.score <= max(plain, 0.0) + margin:
                break
            self._finish(trial)
            finished.append(trial)
        if not finished:
            return None
        highest = max(trial.score for trial in finished)
        if highest < margin:  # None learns: what is missing may come on top of the most changes.
            return max(finished, key=lambda trial: len(trial.actions))
        near = [trial for trial in finished if trial.score >= highest - margin]
        return min(near, key=lambda trial: (len(trial.actions), -trial.score))

    def extended(self, trial: Trial, more: Sequence[Prescription], margin: float) -> Trial:
        """Add changes to a recipe, one at a time, while it is not good and time is left."""
        while trial.score < GOOD and len(trial.actions) < _MOST_ACTIONS and not self._is_over(1.0):
            has = tuple(trial.actions)
            longer = self.best([(*has, each) for each in more if each not in has], margin)
            if longer is None or _floored(longer.score) < _floored(trial.score) + margin:
                break
            trial = longer
        return trial

    def pruned(self, trial: Trial, margin: float) -> tuple[Trial, dict[Prescription, Evidence]]:
        """Take out of a recipe what does not help, and return what the rest is worth.

        Args:
            trial: A recipe, trained in full.
            margin: By how much a score has to fall for a change to have helped.
        """
        evidence: dict[Prescription, Evidence] = {}
        if len(trial.actions) == 1:
            (only,) = trial.actions
            share = max(set(trial.scores) & set(self._plain.scores))
            return trial, {only: Evidence(self._plain.score, trial.scores[share],
                                          self._plain.scores[share])}  # fmt: skip
        for action in reversed(list(trial.actions)):
            rest = [each for each in trial.actions if each is not action]
            if not rest or self._is_over(1.0):
                continue
            undone = self._tried(tuple(rest))
            if undone is None:
                continue
            after, without = trial.scores[_FIRST], undone.scores[_FIRST]
            if _floored(without) >= _floored(after) - margin and not self._is_over(1.0):
                self._finish(undone)
                after, without = trial.score, undone.score
                if _floored(without) >= _floored(after) - margin:
                    return self.pruned(undone, margin)
            evidence[action] = Evidence(self._plain.score, after, without)
        return trial, evidence

    def _tried(self, recipe: Recipe) -> Trial | None:
        key = tuple(sorted(type(each).__name__ for each in recipe))
        if key in self._seen:
            return self._seen[key]
        trial = self._bench.trial(recipe)
        if trial.actions:
            self._bench.train(trial, _FIRST)
        self._spent += trial.steps
        if not trial.actions:
            return None
        effective = tuple(sorted(type(each).__name__ for each in trial.actions))
        return self._seen.setdefault(effective, self._seen.setdefault(key, trial))

    def _finish(self, trial: Trial) -> None:
        """Train a recipe in full, from other first weights than those by which it was chosen."""
        if _FULL not in trial.scores:
            again = self._bench.again(trial, self._seed)
            self._bench.train(again, _FULL)
            self._spent += again.steps
            trial.scores[_FULL] = again.score

    def _is_over(self, share: float) -> bool:
        return self._spent >= share * self._budget * self._unit


def _floored(score: float) -> float:
    """Return a score, but 0 where it is worse than a constant answer's: none of those learns."""
    return max(score, 0.0)


def usual(allowed: Sequence[Prescription]) -> list[Prescription]:
    """Return what a net should be given where its findings do not help."""
    return [each for name in _USUAL for each in allowed if type(each).__name__ == name]


def recipes_for(
    codes: Sequence[str],
    hints: Sequence[str],
    applicable: Sequence[Prescription],
    allowed: Sequence[Prescription],
) -> list[Recipe]:
    """Return recipes for findings, those first that are likely to heal.

    Args:
        codes: Codes of the root findings, the likeliest first.
        hints: Codes of findings from which nothing showed harm, or which others explain.
        applicable: Prescriptions that change something of the model as it was given.
        allowed: Prescriptions that the person allows.
    """
    healing, others = answers(codes, applicable)
    hinted, more = answers(hints, applicable)
    known = list(dict.fromkeys([*healing, *hinted, *others, *more, *usual(applicable)]))
    if not known:
        return []
    firsts = healing or known[:1]
    rest = [each for each in known if each not in firsts]
    # Targets may have no scale to speak of before the head fits them.
    scales = [
        each for each in allowed
        if type(each).__name__ in _SCALES
        and (each in applicable or named("FitHead") in firsts)
    ]  # fmt: skip
    # Hints are for where nothing shows harm; beside what does they would be one change too many.
    together = tuple(dict.fromkeys([*firsts, *scales, *([] if healing else hinted)]))
    together = together[:_MOST_ACTIONS]
    if len(together) > 1:  # A longer run costs most, and the rest may do.
        together = tuple(each for each in together if type(each).__name__ != _LONGEST)
    recipes: list[Recipe] = [together, tuple(firsts[:1])]
    recipes.append(tuple(usual(applicable)[:_MOST_ACTIONS]))
    recipes += [(firsts[0], each) for each in rest[:2]]
    recipes += [(each,) for each in [*firsts[1:3], *rest]]
    return list(dict.fromkeys(recipe for recipe in recipes if recipe))


def answers(
    codes: Sequence[str], applicable: Sequence[Prescription]
) -> tuple[list[Prescription], list[Prescription]]:
    """Return one prescription that heals each code, and all others that heal it or may help."""
    firsts: list[Prescription] = []
    others: list[Prescription] = []
    for code in codes:
        healing = [each for each in applicable if code in each.heals]
        firsts += healing[:1]
        others += healing[1:] + [each for each in applicable if code in each.helps]
    return list(dict.fromkeys(firsts)), list(dict.fromkeys(others))


def allowed_by(names: Sequence[str] | None) -> list[Prescription]:
    """Return the prescriptions of some class names, or all."""
    return list(CATALOGUE) if names is None else [named(name) for name in names]


def gain_that_counts(num_scored: int) -> float:
    """Return the difference of two scores that is no noise, for a number of scored examples."""
    return 0.05 + 0.5 / max(num_scored, 1) ** 0.5
