"""Trouble that comes again goes further back and cuts the rate; calm undoes that."""

import pytest

from gradstab.recovery.escalation import CALM_STEPS, LEVELS, Escalation, Rollback
from gradstab.recovery.troubles import Trouble

RATE = Trouble("loss_stays_up", "The loss stays up.")
POISON = Trouble("spoiled_statistics", "Statistics.", may_be_rate=False)


def test_each_relapse_goes_further_back_and_cuts_more():
    escalation = Escalation(max_rollbacks=3)
    found = [escalation.on_trouble(RATE, step, was_calm=True) for step in (100, 200, 300, 400)]
    assert found == [Rollback(0, 1.0), Rollback(1, 0.5), Rollback(2, 0.1), None]


def test_a_run_that_was_never_calm_has_its_rate_cut_at_once():
    assert Escalation(5).on_trouble(RATE, 10, was_calm=False) == Rollback(0, 0.5)
    assert Escalation(5).on_trouble(POISON, 10, was_calm=False) == Rollback(0, 1.0)


def test_calm_gives_the_budget_back_and_undoes_the_cut_level_by_level():
    escalation = Escalation(max_rollbacks=3)
    for step in (100, 200, 300):
        escalation.on_trouble(RATE, step, was_calm=True)
    assert escalation.factor == LEVELS[2]
    assert escalation.on_calm(300 + CALM_STEPS - 1) is None
    assert escalation.on_calm(300 + CALM_STEPS) == LEVELS[1]
    assert escalation.on_calm(300 + CALM_STEPS + 1) is None
    assert escalation.on_calm(300 + 2 * CALM_STEPS) == LEVELS[0]
    assert escalation.on_calm(300 + 3 * CALM_STEPS) is None
    assert escalation.on_trouble(RATE, 10_000, was_calm=True) == Rollback(0, 1.0)


def test_a_rate_with_which_nothing_was_learned_is_cut_far_and_for_good():
    escalation = Escalation(max_rollbacks=3)
    never = Trouble("rate_too_high", "Too high.", levels=3)
    assert escalation.on_trouble(never, 40, was_calm=True) == Rollback(0, LEVELS[3])
    assert escalation.on_calm(40 + CALM_STEPS) is None
    assert escalation.factor == LEVELS[3]


def test_a_rate_that_brings_the_trouble_back_stays_cut_for_good():
    escalation = Escalation(max_rollbacks=3)
    escalation.on_trouble(RATE, 10, was_calm=False)
    assert escalation.on_calm(10 + CALM_STEPS) == 1.0
    step = 20 + CALM_STEPS
    assert escalation.on_trouble(RATE, step, was_calm=False) == Rollback(0, 0.5)
    assert all(escalation.on_calm(step + n * CALM_STEPS) is None for n in range(1, 5))


@pytest.mark.parametrize("count", [1, 7])
def test_the_lowest_level_is_the_last(count):
    escalation = Escalation(max_rollbacks=count)
    for step in range(count):
        assert escalation.on_trouble(RATE, step, was_calm=False).factor >= LEVELS[-1]
    assert escalation.on_trouble(RATE, 99, was_calm=False) is None
