"""The search takes what heals from two first weights, undoes what does not, and counts steps."""

import pytest

from gradstab.repairs.prescriptions.base import Change
from gradstab.repairs.prescriptions.catalogue import CATALOGUE, named
from gradstab.repairs.search import Search, answers, recipes_for
from gradstab.repairs.trial import TRACE, Trial

PLAN = 1000.0


class _Bench:
    """A bench where each recipe has a score after a quarter, and one from other first weights."""

    planned_steps = PLAN

    def __init__(self, scores):
        self.scores, self.tried, self.finished = scores, [], []

    def trial(self, recipe):
        actions = {each: [Change("a", "b")] for each in recipe}
        return Trial(actions, draft=None, steps=TRACE)

    def again(self, trial, seed):
        assert seed == 7
        self.finished.append(_names(trial.actions))
        return Trial(trial.actions, draft=None, steps=TRACE)

    def train(self, trial, share):
        trial.steps += share * PLAN
        if share < 1:
            self.tried.append(_names(trial.actions))
        trial.scores[share] = self.scores.get(_names(trial.actions), (0.0, 0.0))[share == 1]


def _names(actions):
    return " ".join(sorted(type(each).__name__ for each in actions))


def _recipes(*lines):
    return [tuple(named(name) for name in line.split()) for line in lines]


def _search(scores, budget=3.0):
    plain = Trial({}, draft=None, scores={0.25: 0.0, 1.0: 0.1})
    bench = _Bench(scores)
    return Search(bench, plain, budget, seed=7), bench


def test_a_recipe_that_heals_at_once_is_taken_and_no_other_is_tried():
    search, bench = _search({"FitHead": (0.6, 0.9), "UseAdam": (0.9, 0.9)})
    found = search.best(_recipes("FitHead", "UseAdam"), margin=0.05)
    assert _names(found.actions) == "FitHead"
    assert bench.tried == bench.finished == ["FitHead"]
    assert search.spent == pytest.approx(1 + (2 * TRACE + 1.25 * PLAN) / (TRACE + PLAN))


def test_what_learns_from_one_start_alone_is_passed_over():
    search, _ = _search({"FitHead": (0.9, -0.2), "UseAdam": (0.7, 0.7)}, budget=6.0)
    assert _names(search.best(_recipes("FitHead", "UseAdam"), 0.05).actions) == "UseAdam"


def test_the_budget_is_kept_but_for_the_trial_that_passes_it():
    names = [type(each).__name__ for each in CATALOGUE]
    search, bench = _search(dict.fromkeys(names, (0.1, 0.3)))
    found = search.best(_recipes(*names), 0.05)
    search.extended(found, list(CATALOGUE), 0.05)
    assert 3.0 <= search.spent < 3.0 + (TRACE + PLAN) / (TRACE + PLAN) + 0.5
    assert 2 <= len(bench.tried) < len(names)


def test_what_promises_nothing_is_not_trained_in_full_once_the_budget_is_spent():
    search, bench = _search({}, budget=1.2)
    assert search.best(_recipes("FitHead"), 0.05) is None
    assert (bench.tried, bench.finished) == (["FitHead"], [])


@pytest.mark.parametrize(("alone", "want"), [(0.85, "FitHead"), (0.2, "FitHead UseAdam")])
def test_what_does_not_help_is_taken_out(alone, want):
    both = "FitHead UseAdam"
    search, _ = _search({both: (0.8, 0.9), "FitHead": (alone, alone)}, budget=6.0)
    found, evidence = search.pruned(search.best(_recipes(both), 0.05), 0.05)
    assert _names(found.actions) == want
    assert set(evidence) == set(found.actions)
    assert evidence[named("UseAdam" if alone < 0.5 else "FitHead")].undone < 0.3


def test_a_hint_comes_after_what_shows_harm_and_a_longer_run_by_itself():
    codes = ["too-few-epochs", "learning-rate-too-low"]
    first, second, *_ = recipes_for(codes, ["no-nonlinearity"], CATALOGUE, CATALOGUE)
    assert _names(first) == "ScaleInputs SetLearningRate"
    assert _names(second) == "TrainLonger"
    first, *_ = recipes_for(["collapsed-output"], ["no-nonlinearity"], CATALOGUE, CATALOGUE)
    assert "SwapActivations" in _names(first)


def test_what_has_an_answer_is_added_before_what_is_usual():
    found, more = answers(["too-few-epochs", "batch-size"], CATALOGUE)
    assert [type(each).__name__ for each in found] == ["TrainLonger", "SetBatchSize"]
    assert named("SetLearningRate") in more
