"""What state and losses tell, and that what healthy runs do tells nothing."""

import dataclasses

import numpy as np
import pytest

from gradstab.optimizers.model.damage import MOMENT, STATISTIC, WEIGHT
from gradstab.recovery.loss_watch import LossWatch, fell_out_of_the_blue
from gradstab.recovery.troubles import StateWatch

LOOK = 50


@dataclasses.dataclass(frozen=True)
class Place:
    """What `StateWatch` reads of a variable."""

    path: str
    kind: str | None
    shape: tuple[int, ...] = (10, 10)

    @property
    def variable(self):
        return self


PLACES = (
    Place("dense/kernel", WEIGHT),
    Place("bn/moving_variance", STATISTIC),
    Place("adam/velocity", MOMENT),
)


def watch_after(*looks):
    watch = StateWatch(PLACES)
    for norms in looks or [CALM] * 3:
        assert watch.see(np.array(norms), loss_is_up=False) is None
        watch.keep(np.array(norms))
    return watch


CALM = [50.0, 50.0, 1e-6]


def test_a_bias_that_rounds_to_zero_is_no_trouble():
    places = (*PLACES, Place("dense/bias", WEIGHT, (10,)))
    watch = StateWatch(places)
    watch.keep(np.array([*CALM, 1e-6]))
    assert watch.see(np.array([*CALM, 0.0]), loss_is_up=False) is None


@pytest.mark.parametrize(
    ("norms", "loss_is_up", "code"),
    [
        ([np.nan, 50.0, np.nan], False, "nonfinite_state"),
        ([50.0, np.inf, 1e-6], False, "nonfinite_state"),
        ([0.0, 50.0, 1e-6], False, "zeroed_state"),
        ([50.0, 50.0 * 20**2, 1e-6], False, "spoiled_statistics"),
        ([50.0, 50.0, 1e4], False, "spoiled_moments"),
        ([50.0 * 5**2, 50.0, 1e-6], True, "huge_update"),
        ([50.0 * 5**2, 50.0, 1e-6], False, None),
        ([80.0, 90.0, 1e-4], True, None),
    ],
)
def test_a_state_that_no_healthy_step_makes_is_told(norms, loss_is_up, code):
    trouble = watch_after().see(np.array(norms), loss_is_up=loss_is_up)
    assert (trouble and trouble.kind) == code


def test_weights_that_were_cleared_are_told_though_later_steps_moved_them():
    watch = watch_after()
    moved = np.array([0.3, 50.0, 1e-6])
    assert watch.see(moved, loss_is_up=False) is None
    trouble = watch.see(moved, loss_is_up=False, loss_is_high=True)
    assert trouble.kind == "zeroed_state"
    assert watch.see(np.array([20.0, 50.0, 1e-6]), loss_is_up=False, loss_is_high=True) is None


def test_losses_are_high_if_the_last_few_are_far_above_the_last_calm_ones():
    watch = LossWatch()
    for losses in course(*LEARNED):
        assert not watch.is_high
        watch.see(losses)
        watch.keep()
    watch.see([0.1] * 40 + [0.5] * 10)
    assert watch.is_high
    watch.see([0.1] * 45 + [0.25] * 5)
    assert not watch.is_high


def test_weights_are_named_before_statistics_and_moments():
    trouble = watch_after().see(np.full(3, np.nan), loss_is_up=False)
    assert "`dense/kernel` (weight)" in trouble.text
    assert "2 more variables" in trouble.text


def test_statistics_on_their_way_from_one_are_no_trouble():
    watch = watch_after([50.0, 50.0, 1e-6])
    assert watch.see(np.array([50.0, 50.0 * 1e8, 1e-6]), loss_is_up=False) is None


def test_a_mask_of_infinities_is_no_trouble_and_a_weight_is():
    watch = StateWatch(PLACES)
    watch.begin_from(np.array([50.0, np.inf, 1e-6]))
    assert watch.is_finite(np.array([50.0, np.inf, 1e-6]))
    assert not watch.is_finite(np.array([np.inf, np.inf, 1e-6]))


def course(*pieces, seed=0):
    """Losses of looks: each piece is a number of looks and their level, with noise of a tenth."""
    draw = np.random.default_rng(seed)
    return [
        np.array(level)
        if isinstance(level, list)
        else level * np.exp(0.1 * draw.standard_normal(LOOK))
        for count, level in pieces
        for _ in range(count)
    ]


def told(looks):
    watch = LossWatch()
    for place, losses in enumerate(looks):
        trouble = watch.see(losses)
        if trouble is not None:
            return place, trouble.kind
        if not watch.is_up:
            watch.keep()
    return None


LEARNED = [(1, 2.3), (1, 1.0), (3, 0.1)]


@pytest.mark.parametrize(
    ("pieces", "place"),
    [
        ([*LEARNED, (4, 2.3)], 6),
        ([*LEARNED, (4, 50.0)], 6),
        ([(5, 0.1), (4, 2.3)], 6),
        ([(1, [2.0] * 10 + [1e9] * 40), (2, 1e12)], 1),  # a rate too high from the first step on
    ],
)
def test_a_loss_that_stays_up_is_told_at_the_second_look(pieces, place):
    assert told(course(*pieces)) == (place, "loss_stays_up")


@pytest.mark.parametrize(
    "pieces",
    [
        [*LEARNED, (1, 50.0), (3, 0.1)],  # a spike of one look
        [*LEARNED, (1, 2.3), (1, 1.2), (3, 0.2)],  # on its way down again
        [*LEARNED, (4, 0.8)],  # a warm restart
        [(1, 2.3), (5, 2.25), (4, 2.4)],  # next to nothing was learned
        [(1, -1.0), (3, -5.0), (3, -3.0)],  # below zero by nature
        [(1, 0.5), (1, 0.0), (3, 0.0)],
        [(2, 1e-8), (5, 2e-8)],
    ],
)
def test_what_healthy_runs_do_is_not(pieces):
    assert told(course(*pieces)) is None


@pytest.mark.parametrize(
    ("spiked", "place"),
    [
        (lambda look: [*look[:30], 1e4, *look[31:] * 7], 5),  # Back where it was long ago.
        (lambda look: [*look[:45], 1e4, *look[46:]], 6),  # Too late in a look to tell at once.
        (lambda look: [*look[:30], 1e4, *look[31:] * 2], None),
        (lambda look: [*look[:30], 15.0, *look[31:] * 7], None),  # High, and no spike.
    ],
)
def test_a_spike_after_which_the_loss_stays_above_the_last_calm_ones_is_told(spiked, place):
    looks = course(*LEARNED, (2, 0.1))
    looks[5] = np.array(spiked(looks[5]))
    looks[6] = looks[6] * 7 if place == 6 else looks[6]
    assert told(looks) == (None if place is None else (place, "spike_stays"))


def test_nothing_is_kept_while_it_is_open_what_follows_a_spike():
    watch = LossWatch()
    for losses in course(*LEARNED):
        watch.see(losses)
        watch.keep()
    watch.see([0.1] * 45 + [1e4] + [0.1] * 4)
    assert not watch.is_calm
    again = LossWatch()
    again.resume(watch.state())
    for each in (watch, again):
        assert each.see([0.1] * 50) is None
        assert each.is_calm


def test_single_bad_losses_and_those_that_are_not_finite_do_not_count():
    looks = course(*LEARNED, (6, 0.1))
    for losses in looks[3:]:
        losses[::7] = np.inf
        losses[1::5] = 1e6
    assert told(looks) is None


@pytest.mark.parametrize(
    ("grown", "has_learned", "looks", "levels"),
    [
        (4.0, False, 0, 3),
        (400.0, False, 0, 4),
        (40.0, True, 0, None),  # A net with small first weights, which learns.
        (2.0, False, 0, None),
        (4.0, False, 4, None),  # A long plateau.
    ],
)
def test_weights_that_leave_while_nothing_is_learned_tell_a_rate_too_high(
    grown, has_learned, looks, levels
):
    begun, now = np.array([50.0, 50.0, 0.0]), np.array([50.0 * grown**2, 50.0, 1e-6])
    watch = watch_after(*[begun] * looks) if looks else StateWatch(PLACES)
    watch.begin_from(begun)
    trouble = watch.see(now, loss_is_up=False, has_learned=has_learned)
    assert (None if trouble is None else trouble.levels) == levels
    assert trouble is None or trouble.kind == "rate_too_high"


def test_a_state_that_went_back_to_the_start_is_judged_as_one():
    """Moments rise from exactly zero, and a moving variance from one."""
    watch = watch_after()
    watch.begin_anew(np.array([50.0, 50.0, 0.0]))
    assert watch.see(np.array([50.0, 50.0 * 20**2, 1e4]), loss_is_up=False) is None


def test_what_counts_as_learned():
    losses = LossWatch()
    assert losses.has_learned([]), "nothing to compare with"
    assert not losses.has_learned([2.3, *[40.0] * 10, *[2.25] * 25])
    assert losses.has_learned([*[2.0] * 15, *[2.4] * 10])
    assert not losses.has_learned([20.0, *[1.8] * 25]), "it rose far first"


@pytest.mark.parametrize(
    ("losses", "is_data"),
    [
        ([2.3, 2.2, 2.4, 2.1, np.nan, np.nan], True),
        ([2.3, 14.0, 115.0, np.inf, np.nan], False),
        ([2.3, np.nan, np.nan], False),  # Too few to say.
        ([np.nan] * 5, False),
        ([2.3, 2.2, 2.4], True),
    ],
)
def test_bad_data_comes_out_of_the_blue(losses, is_data):
    assert fell_out_of_the_blue(losses) == is_data
