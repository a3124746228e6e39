"""A skipped step leaves everything as it was, byte for byte; and these tests would notice."""

import common_checks as checks
import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab import transforms
from gradstab.keras_hooks.substitute import replaced_method
from gradstab.optimizers import StabilizedOptimizer
from gradstab.optimizers.step import applying

BAD = {
    "nan": lambda g: [g[0], tf.fill((3, 2), np.nan), g[2]],
    "inf": lambda g: [tf.fill((5, 2), np.inf), g[1], g[2]],
    # Finite in every entry, and infinite as a sum of squares in float32.
    "overflow": lambda g: [g[0], g[1], tf.fill((4,), 1e20)],
}


def _inner():
    rate = keras.optimizers.schedules.ExponentialDecay(0.1, decay_steps=2, decay_rate=0.5)
    return keras.optimizers.Adam(
        rate, weight_decay=0.01, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3
    )


def _optimizer(*more):
    chain = [transforms.ClipByValue(1e30), transforms.SkipNonFinite(2), *more]
    return StabilizedOptimizer(_inner(), chain)


def _leaks(mode, optimizer, kinds=tuple(BAD)):
    """Take good and bad steps; return the names of all that a bad one moved, and the last state.

    The last state is returned twice: with the bad steps, and without, from the same start.
    """
    weights = checks.make_variables()
    optimizer.build(weights)
    step, _ = checks.stepper(optimizer, weights, mode)
    state = [*weights, *checks.lasting_state(optimizer)]
    assert len(state) == 3 + 1 + 3 * 3 + 1  # iterations, two moments, an average; one bound
    start = checks.values_of(state)
    leaks, final = [], []
    for bad in ((*kinds, *kinds), ()):  # more in a row than `max_consecutive`
        for variable, value in zip(state, start, strict=True):
            variable.assign(value)
        for seed in range(2):
            step(*checks.make_gradients(seed))
        for kind in bad:
            before = checks.contents(state)
            step(*BAD[kind](checks.make_gradients(9)))
            leaks += checks.differences(before, checks.contents(state))
        step(*checks.make_gradients(2))
        final.append(checks.contents(state))
    return leaks, final


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("mode", checks.MODES)
def test_a_bad_step_moves_nothing(mode):
    optimizer = _optimizer()
    leaks, (final, clean) = _leaks(mode, optimizer)
    assert not leaks
    assert not checks.differences(final, clean)  # as if the bad steps had not been
    assert optimizer.telemetry.peek().total_skipped == 2 * len(BAD)


def test_the_comparison_notices_zero_gradients_in_place_of_a_skip(monkeypatch):
    """Setting gradients to zero moves moments, weight decay, the schedule and averages."""
    optimizer = _optimizer()
    inner_apply = optimizer.inner_optimizer.apply

    def with_zeros(gradients, variables):
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(g * g)) for g in gradients])
        inner_apply([tf.where(finite, g, tf.zeros_like(g)) for g in gradients], variables)

    def always(place, branches, around, written):
        with around:
            branches[-1]()

    monkeypatch.setattr(applying, "one_of", always)
    with replaced_method(optimizer.inner_optimizer, "apply", with_zeros):
        leaks, _ = _leaks("eager", optimizer, kinds=("nan",))
    for part in ("iteration", "kernel", "kernel_momentum", "kernel_velocity", "kernel_average"):
        assert any(name.endswith(part) for name in leaks), part


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_nan_batch_in_fit_moves_nothing(jit_compile):
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(4, 3)), draw.normal(size=(4, 1))
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(2, "tanh"), keras.layers.Dense(1)]
    )
    model.compile(_optimizer(), "mse", jit_compile=jit_compile)
    model.fit(x, y, verbose=0)
    state = [*model.trainable_variables, *checks.lasting_state(model.optimizer)]
    before = checks.contents(state)
    losses = [model.train_on_batch(np.full_like(x, np.nan), y) for _ in range(3)]
    assert np.isnan(losses).all()
    assert not checks.differences(before, checks.contents(state))
    model.train_on_batch(x, y)
    reading = model.optimizer.telemetry.peek()
    assert reading.skipped.tolist() == [False, True, True, True, False]
    assert np.isnan(reading.loss).tolist() == [False, True, True, True, False]
    assert int(model.optimizer.iterations) == 2
    assert checks.differences(before, checks.contents(state))
