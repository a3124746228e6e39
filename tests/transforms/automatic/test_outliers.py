"""LimitOutliers: what it lets pass, what is left of an outlier, and how a new level is believed."""

import common_checks as checks
import numpy as np
import pytest
from steps_of_rules import take

from gradstab import transforms


def _limited(optimizer):
    return np.flatnonzero(optimizer.telemetry.peek().limited_by["outlier"]).tolist()


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("mode", checks.MODES)
def test_a_bad_batch_hardly_moves_the_weights_and_the_next_steps_are_as_ever(mode):
    norms = np.random.default_rng(0).uniform(0.5, 1.5, 60)
    norms[40] = 1e3
    applied, optimizer = take(transforms.LimitOutliers(), norms, mode)
    assert _limited(optimizer) == [40]
    assert applied[40] < 0.05
    np.testing.assert_allclose(np.delete(applied, 40), np.delete(norms, 40), rtol=1e-5)


def test_the_farther_out_the_less_is_left_and_never_more_than_the_limit():
    calm = np.ones(80)
    left = []
    for spike in (2.0, 2.3, 3.0, 10.0, 1e3, 1e6, 1e20):
        applied, _ = take(transforms.LimitOutliers(), [*calm, spike])
        left.append(applied[-1])
    assert left[0] == pytest.approx(2.0)  # within twice the longest
    assert np.all(np.diff(left[1:]) < 0)
    assert max(left) < 2.0 * (1 + 8 / 80) * 1.001


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("scale", [1e-12, 1e9])
def test_units_do_not_matter(scale):
    draw = np.random.default_rng(1)
    norms = draw.lognormal(0.0, 1.0, 100)
    norms[[30, 60, 61]] *= 1e3
    applied, optimizer = take(transforms.LimitOutliers(), norms)
    others, other = take(transforms.LimitOutliers(), scale * norms)
    np.testing.assert_allclose(others / scale, applied, rtol=1e-4)
    assert _limited(optimizer) == _limited(other) != []


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("level", [10.0, 1e3, 1e8])
def test_a_new_level_is_believed_within_steps(level):
    norms = [*np.ones(100), *np.full(60, level)]
    applied, optimizer = take(transforms.LimitOutliers(), norms)
    held = len(_limited(optimizer))
    assert held <= 3
    np.testing.assert_allclose(applied[100 + held :], level, rtol=1e-5)


def test_spikes_that_come_again_and_again_stay_spikes():
    norms = np.ones(1000)
    norms[99::50] = 1e3
    applied, optimizer = take(transforms.LimitOutliers(), norms)
    assert _limited(optimizer) == list(range(99, 1000, 50))
    assert applied.max() < 1.001


def test_after_a_long_pause_one_step_is_shortened_at_most():
    # As where errors are zero until something new is met, in reinforcement learning for instance.
    norms = [*np.ones(50), *np.full(500, 1e-6), *np.ones(50)]
    _, optimizer = take(transforms.LimitOutliers(), norms)
    assert len(_limited(optimizer)) <= 1


def test_gradients_of_zero_do_not_count():
    applied, optimizer = take(transforms.LimitOutliers(), [0.0] * 20 + [5.0, 0.0, 5.0])
    assert _limited(optimizer) == []
    np.testing.assert_allclose(applied[[20, 22]], 5.0, rtol=1e-6)


def test_a_step_is_its_rate_times_its_gradient():
    # A rate that falls tenfold while gradients grow tenfold leaves steps as long.
    rates = [0.1] * 60 + [0.01] * 60
    norms = [1.0] * 60 + [10.0] * 60
    _, optimizer = take(transforms.LimitOutliers(), norms, rates=rates)
    assert _limited(optimizer) == []
    _, optimizer = take(transforms.LimitOutliers(), norms, rates=[0.1] * 120)
    assert _limited(optimizer) != []


def test_what_is_skipped_is_not_taken_in():
    norms = np.ones(60)
    norms[[20, 40]] = np.nan, np.inf
    norms[41] = 1e3
    _, optimizer = take(transforms.LimitOutliers(), norms)
    assert optimizer.telemetry.peek().total_skipped == 2
    assert _limited(optimizer) == [41]


def test_an_infinite_factor_is_no_limit():
    norms = [1.0] * 20 + [1e9]
    applied, optimizer = take(transforms.LimitOutliers(np.inf), norms)
    np.testing.assert_allclose(applied, norms, rtol=1e-6)
    assert _limited(optimizer) == []


def test_it_may_be_changed_during_a_run():
    transform = transforms.LimitOutliers()
    _, optimizer = take(transform, [1.0] * 50)
    transform.factor = 9.0
    assert float(optimizer.transforms[1].bound_variables["factor"]) == 9.0
