"""LimitRateJumps: what it lets pass, what it holds back and for how long."""

import common_checks as checks
import keras
import numpy as np
import pytest
import tensorflow as tf
from steps_of_rules import take

from gradstab import optimizers, schedules, transforms


def _moved(rates, mode="graph"):
    """Return the rates with which SGD moved, and the number of steps that counted as limited."""
    ones = np.ones(len(rates))
    applied, optimizer = take(transforms.LimitRateJumps(), ones, mode, rates=rates)
    return applied * rates, optimizer.telemetry.peek().total_limited_by["rate_jump"]


@pytest.mark.parametrize("mode", checks.MODES)
def test_one_wrong_rate_is_replaced_by_the_largest_before(mode):
    got, limited = _moved([0.01, 0.02, 0.02, 2.0, 0.02, 0.02], mode)
    np.testing.assert_allclose(got, [0.01, 0.02, 0.02, 0.02, 0.02, 0.02], rtol=1e-5)
    assert limited == 1


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(("jump", "held"), [(3.9, 0), (4.1, 1), (15.0, 1), (100.0, 3), (1e3, 4)])
def test_a_rate_that_lasts_is_believed(jump, held):
    rates = [0.01] * 3 + [0.01 * jump] * 8
    got, limited = _moved(rates)
    expected = np.array(rates)
    expected[3 : 3 + held] = 0.01
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert limited == held


def test_units_do_not_matter():
    rates = np.array([1.0, 2.0, 50.0, 2.0, 30.0, 30.0, 30.0, 1.0])
    small, large = _moved(1e-6 * rates), _moved(1e2 * rates)
    np.testing.assert_allclose(small[0] * 1e8, large[0], rtol=1e-5)
    assert small[1] == large[1] > 0


SCHEDULES = [
    schedules.LinearWarmup(0.1, 50),
    schedules.ExponentialWarmup(keras.optimizers.schedules.CosineDecay(0.1, 200), 20),
    schedules.OneCycle(0.1, 200),
    keras.optimizers.schedules.CosineDecayRestarts(0.1, 20),
    keras.optimizers.schedules.ExponentialDecay(1e-7, 1, 1.5),  # a test over all rates
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda each: type(each).__name__)
def test_schedules_are_left_alone(schedule):
    weights = [keras.Variable(np.ones(3, "float32")) for _ in range(2)]
    plain = keras.optimizers.Adam(schedule)
    ours = optimizers.StabilizedOptimizer(
        keras.optimizers.Adam(schedule), [transforms.LimitRateJumps()]
    )
    draw = np.random.default_rng(0)
    for _ in range(60):
        gradient = tf.constant(draw.normal(size=3), "float32")
        for optimizer, weight in zip((plain, ours), weights, strict=True):
            optimizer.apply([gradient], [weight])
    np.testing.assert_array_equal(*[weight.numpy() for weight in weights])
    assert ours.telemetry.peek().total_limited == 0


def test_what_a_person_set_stays_set():
    _, optimizer = take(transforms.LimitRateJumps(), [1.0] * 3, rates=[0.01, 0.01, 1.0])
    assert float(optimizer.learning_rate) == 1.0


def test_the_optimizer_s_own_decay_sees_the_rate_that_is_left():
    weights = keras.Variable(np.ones(2, "float32"))
    inner = keras.optimizers.AdamW(0.01, weight_decay=0.5)
    optimizer = optimizers.StabilizedOptimizer(inner, [transforms.LimitRateJumps()])
    for rate in (0.01, 1.0):
        inner.learning_rate.assign(rate)
        optimizer.apply([tf.zeros(2)], [weights])
    np.testing.assert_allclose(weights.numpy(), (1 - 0.005) ** 2, rtol=1e-6)


def test_parts_with_rates_of_their_own_are_left_alone():
    part = keras.optimizers.SGD(1.0)
    optimizer = optimizers.StabilizedOptimizer(
        keras.optimizers.MultiOptimizer(lambda variable: part),
        [transforms.SkipNonFinite(), transforms.LimitRateJumps(), transforms.LimitOutliers()],
    )
    weight = keras.Variable(np.zeros(2, "float32"))
    for scale in [1.0] * 20 + [1e3]:
        optimizer.apply([scale * tf.ones(2)], [weight])
    assert optimizer.telemetry.peek().total_limited_by == {"rate_jump": 0, "outlier": 1}


def test_it_is_saved(tmp_path):
    runs = []
    for restored in (False, True):
        weight = keras.Variable(np.zeros(2, "float32"))
        optimizer = optimizers.StabilizedOptimizer(
            keras.optimizers.SGD(0.01), [transforms.LimitRateJumps()]
        )
        optimizer.build([weight])
        checkpoint = tf.train.Checkpoint(optimizer=optimizer, weight=weight)
        if restored:
            checkpoint.read(str(tmp_path / "state")).assert_consumed()
        else:
            optimizer.apply([tf.ones(2)], [weight])
            checkpoint.write(str(tmp_path / "state"))
        optimizer.learning_rate = 1.0
        optimizer.apply([tf.ones(2)], [weight])
        runs.append(weight.numpy())
    np.testing.assert_allclose(runs, -0.02, rtol=1e-6)


def test_a_part_of_the_variables_has_no_rate_of_its_own():
    with pytest.raises(ValueError, match="one learning rate"):
        transforms.Only(transforms.LimitRateJumps(), include="kernel")


@pytest.mark.parametrize(
    ("factor", "error"), [(1.0, ValueError), (0.5, ValueError), ("4", TypeError)]
)
def test_refused(factor, error):
    with pytest.raises(error, match="`factor` must be a float above 1"):
        transforms.LimitRateJumps(factor)
