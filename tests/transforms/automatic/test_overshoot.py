"""LimitOvershoot: SGD that converges is left alone, SGD that diverges is held."""

import common_checks as checks
import keras
import numpy as np
import pytest
import tensorflow as tf
from steps_of_rules import take

from gradstab import optimizers, transforms

CURVATURES = np.array([1.0, 0.1, 0.01], "float32")


def _descend(rate, momentum=0.0, steps=200, scale=1.0, offset=0.0, inner=None, rates=None):
    """Minimize a quadratic of largest curvature 1; return its losses, the optimizer and flags."""
    weight = keras.Variable(np.ones(3, "float32"))
    inner = inner or keras.optimizers.SGD(rate, momentum=momentum)
    optimizer = optimizers.StabilizedOptimizer(
        inner, [transforms.SkipNonFinite(), transforms.LimitOvershoot()]
    )
    optimizer.build([weight])

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = scale * (0.5 * tf.reduce_sum(CURVATURES * weight.value**2) + offset)
            scaled = optimizer.scale_loss(loss)
        optimizer.apply([tape.gradient(scaled, weight.value)], [weight])
        return loss

    losses = []
    for place in range(steps):
        if rates is not None:
            inner.learning_rate.assign(rates[place])
        losses.append(float(step()))
    return np.array(losses), optimizer.telemetry.peek().limited_by["overshoot"]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("rate", [0.01, 1.0, 1.99])
def test_descent_that_converges_is_left_alone(rate, scale):
    # Gradient descent converges on curvature 1 up to a rate of 2.
    losses, limited = _descend(rate / scale, scale=scale)
    assert losses[-1] < losses[0]
    assert not limited.any()


@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_with_momentum_usual_rates_are_left_alone(momentum):
    losses, limited = _descend(0.5 * (1 - momentum) * 2, momentum)
    assert losses[-1] < 0.1 * losses[0]
    assert not limited.any()


@pytest.mark.parametrize("rate", [20.0, 200.0, 2e4])
def test_descent_that_diverges_is_held(rate):
    plain = 1.0
    for _ in range(20):
        plain *= (1 - rate) ** 2
    losses, limited = _descend(rate)
    assert plain > 1e20
    assert losses.max() < 1e3 * losses[0]
    assert limited.any()


def test_the_limit_lifts_when_calm_returns():
    rates = [200.0] * 20 + [0.5] * 60
    _, limited = _descend(0.5, steps=80, rates=rates)
    assert limited[:20].sum() > 5
    # The largest sum of evidence, 5, falls below 1 in 14 steps of 0.3.
    assert not limited[20 + 14 :].any()


def test_with_adam_it_does_nothing():
    _, limited = _descend(None, inner=keras.optimizers.Adam(50.0))
    assert not limited.any()


@pytest.mark.parametrize("offset", [-1.0, -10.0])
def test_a_loss_that_is_negative_is_no_evidence(offset):
    _, limited = _descend(1.5, steps=50, offset=offset)
    assert not limited.any()


def test_without_the_loss_nothing_is_known():
    applied, optimizer = take(transforms.LimitOvershoot(), [1e3] * 20)
    np.testing.assert_allclose(applied, 1e3, rtol=1e-5)
    assert optimizer.telemetry.peek().total_limited == 0


@pytest.mark.parametrize("mode", checks.MODES)
def test_one_step_far_beyond_is_evidence_enough_and_keeps_three_times_the_loss(mode):
    # 0.5·n² = 3·2 at n² = 12; what is left of ⟨g, g'⟩ = 100·n' is 12.
    applied, _ = take(transforms.LimitOvershoot(), [0.1, 100.0], mode, losses=[2.0, 2.0])
    np.testing.assert_allclose(applied, [0.1, 0.12], rtol=1e-5)


def test_evidence_adds_up():
    # x = 0.5·n²/L = 18, ln 1.8 = 0.59: beyond 1 with the second.
    applied, _ = take(transforms.LimitOvershoot(), [6.0] * 4, losses=[1.0] * 4)
    np.testing.assert_allclose(applied, [6.0, 1.0, 1.0, 1.0], rtol=1e-5)


def test_a_batch_that_is_all_but_solved_is_no_evidence():
    norms, losses = [1.0] * 40, [1.0, 1e-6] * 20
    _, optimizer = take(transforms.LimitOvershoot(), norms, losses=losses)
    assert optimizer.telemetry.peek().total_limited == 0


@pytest.mark.parametrize(("fallen_to", "limited"), [(0.01, False), (0.5, True)])
def test_once_the_loss_has_fallen_no_evidence_begins(fallen_to, limited):
    # x = 0.5·n²/L = 0.5 for forty steps and 25 for forty more.
    losses = np.array([1.0] + [fallen_to] * 80)
    norms = np.sqrt(np.where(np.arange(81) < 41, 1.0, 50.0) * losses)
    _, optimizer = take(transforms.LimitOvershoot(), norms, losses=losses)
    assert optimizer.telemetry.peek().limited_by["overshoot"].any() == limited


def test_a_bad_batch_that_another_rule_limits_is_not_taken_in():
    norms, losses = np.ones(80), np.ones(80)
    norms[40], losses[40] = 1e4, 1e6
    weight = keras.Variable(np.zeros(1, "float32"))
    optimizer = optimizers.StabilizedOptimizer(
        keras.optimizers.SGD(0.1), [transforms.LimitOutliers(), transforms.LimitOvershoot()]
    )
    optimizer.build([weight])
    kept = []
    for norm, loss in zip(norms, losses, strict=True):
        optimizer.scale_loss(tf.constant(loss, "float32"))
        optimizer.apply([tf.constant([norm], "float32")], [weight])
        state = [v for v in optimizer.variables if v.name.startswith("LimitOvershoot_")]
        kept.append({v.name.removeprefix("LimitOvershoot_"): float(v) for v in state})
    assert optimizer.telemetry.peek().total_limited_by == {"outlier": 1, "overshoot": 0}
    assert max(each["largest_loss"] for each in kept) == 1.0
    assert kept[-1]["evidence"] == 0.0


def test_fit_tells_the_loss():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(256, 4)).astype("float32")
    y = x @ np.array([[1.0], [2.0], [3.0], [4.0]], "float32")
    ends = {}
    for rate in (0.05, 50.0):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        optimizer = optimizers.StabilizedOptimizer(
            keras.optimizers.SGD(rate), [transforms.LimitOvershoot()]
        )
        model.compile(optimizer, "mse")
        history = model.fit(x, y, batch_size=32, epochs=5, verbose=0)
        ends[rate] = history.history["loss"][-1], optimizer.telemetry.peek().total_limited
    assert ends[0.05][1] == 0
    assert ends[50.0][1] > 0
    assert ends[50.0][0] < 1e3
