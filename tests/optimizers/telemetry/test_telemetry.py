"""What a run can tell: counts, norms, the latest steps, and why it has diverged."""

import warnings

import common_checks as checks
import keras
import numpy as np
import pytest
import references
import tensorflow as tf

from gradstab import DivergenceError, optimizers, stabilize, transforms
from gradstab.optimizers.telemetry.reading import CAPACITY

NAN = np.nan


def _run(optimizer, *norms, weights=None):
    """Take steps whose gradients are (norm, 0) for each of two variables."""
    if weights is None:
        weights = [keras.Variable(np.zeros(2), name=name) for name in ("first", "second")]
    for pair in norms:
        pair = pair if isinstance(pair, tuple) else (pair, 0.0)
        optimizer.apply([tf.constant([value, 0.0]) for value in pair], weights)
    return weights


def test_every_number():
    optimizer = stabilize("sgd", clip=1.0)
    _run(optimizer, (3.0, 4.0), (0.3, 0.4), (NAN, 1.0), (1.0, np.inf), (NAN, NAN), (0.0, 2.0))
    reading = optimizer.telemetry.read()
    assert reading.cursor == 6
    assert reading.missed == 0
    assert reading.steps.tolist() == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(reading.grad_norm, [5.0, 0.5, NAN, np.inf, NAN, 2.0], rtol=1e-6)
    np.testing.assert_allclose(reading.grad_norm_after[[0, 1, 5]], [1.0, 0.5, 1.0], rtol=1e-6)
    assert reading.clipped.tolist() == [True, False, False, False, False, True]
    assert reading.skipped.tolist() == [False, False, True, True, True, False]
    assert reading.cause == [None, None, "nonfinite", "nonfinite", "nonfinite", None]
    assert reading.bad_variable == [None, None, "first", "second", "first", None]
    assert np.isnan(reading.loss).all()
    assert reading.norms == {"first": 0.0, "second": 2.0}
    assert (reading.total_skipped, reading.total_clipped) == (3, 2)
    assert reading.skipped_by_cause == {"nonfinite": 3}
    assert reading.consecutive_skips == 0
    assert reading.divergence is None


def test_before_the_first_step():
    reading = stabilize("sgd").telemetry.read()
    assert reading.cursor == 0
    assert reading.steps.size == 0
    assert reading.skipped_by_cause == {"nonfinite": 0}
    assert reading.divergence is None
    stabilize("sgd").telemetry.acknowledge()
    stabilize("sgd").raise_if_diverged()


def test_readers_have_their_own_cursors_and_change_nothing():
    optimizer = stabilize("adam", clip=None)
    weights = _run(optimizer, 1.0, 2.0)
    before = checks.contents([*weights, *optimizer.variables])
    fast = optimizer.telemetry.read()
    assert fast.grad_norm.tolist() == [1.0, 2.0]
    assert not checks.differences(before, checks.contents([*weights, *optimizer.variables]))
    _run(optimizer, 3.0, weights=weights)
    fast = optimizer.telemetry.read(since=fast.cursor)
    assert fast.grad_norm.tolist() == [3.0]
    _run(optimizer, 4.0, weights=weights)
    slow = optimizer.telemetry.read(since=0)
    assert slow.grad_norm.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert optimizer.telemetry.read(since=fast.cursor).grad_norm.tolist() == [4.0]
    assert optimizer.telemetry.read(since=slow.cursor).steps.size == 0
    for bad in (-1, 5):
        with pytest.raises(ValueError, match=r"`since` must be a cursor between 0 and 4"):
            optimizer.telemetry.read(since=bad)


def test_the_ring_keeps_the_latest_steps_and_says_what_it_lost():
    optimizer = stabilize(keras.optimizers.SGD(0.0), clip=None)
    weight = keras.Variable(np.zeros(1))
    optimizer.build([weight])

    @tf.function
    def many(first, last):
        for number in tf.range(first, last):
            optimizer.apply([tf.reshape(tf.cast(number, "float32"), (1,))], [weight])

    many(tf.constant(1), tf.constant(CAPACITY + 1))
    reading = optimizer.telemetry.read()
    assert (reading.missed, reading.cursor) == (0, CAPACITY)
    np.testing.assert_array_equal(reading.grad_norm, np.arange(1, CAPACITY + 1))
    many(tf.constant(CAPACITY + 1), tf.constant(CAPACITY + 101))
    reading = optimizer.telemetry.read()
    assert reading.missed == 100
    np.testing.assert_array_equal(reading.steps, np.arange(101, CAPACITY + 101))
    np.testing.assert_array_equal(reading.grad_norm, reading.steps)
    late = optimizer.telemetry.read(since=40)
    assert late.missed == 60
    assert late.steps[0] == 101
    assert optimizer.telemetry.read(since=CAPACITY).steps[0] == CAPACITY + 1


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("jit_compile", [False, True])
def test_many_steps_per_call_lose_nothing(jit_compile):
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(50, 3)).astype("float32"), draw.normal(size=(50, 1))
    x[7] = NAN

    def losses_and_norms():
        """Gradient descent on ‖x·w − y‖² by hand, in float64."""
        w = np.full(3, 0.5)
        for row, target in zip(x.astype("float64"), y[:, 0], strict=True):
            error = row @ w - target
            gradient = 2 * error * row
            yield error**2, references.norm(gradient)
            if np.isfinite(error):
                w = w - 0.01 * gradient

    ones = keras.initializers.Constant(0.5)
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(1, use_bias=False, kernel_initializer=ones)]
    )
    optimizer = stabilize(keras.optimizers.SGD(0.01), clip=None)
    model.compile(optimizer, "mse", steps_per_execution=50, jit_compile=jit_compile)
    model.fit(x, y, batch_size=1, shuffle=False, verbose=0)
    reading = optimizer.telemetry.read()
    expected = np.array(list(losses_and_norms()))
    np.testing.assert_allclose(reading.loss, expected[:, 0], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(reading.grad_norm, expected[:, 1], rtol=1e-3, atol=1e-5)
    assert np.flatnonzero(reading.skipped).tolist() == [7]


def test_divergence_names_the_first_bad_variable_and_step():
    optimizer = stabilize("sgd", max_consecutive=2)
    weights = _run(optimizer, 1.0, (NAN, NAN), 1.0, (1.0, NAN), (NAN, NAN))
    optimizer.raise_if_diverged()  # two in a row are allowed
    _run(optimizer, (NAN, NAN), weights=weights)
    with pytest.raises(DivergenceError, match=r"3 steps in a row.*step 4.*`second` was not finite"):
        optimizer.raise_if_diverged()
    # Good steps after it do not hide it from a reader who comes late.
    _run(optimizer, 1.0, (NAN, 0.0), weights=weights)
    divergence = optimizer.telemetry.peek().divergence
    assert (divergence.variable, divergence.step, divergence.skipped) == ("second", 4, 3)


def test_reading_warns_once_for_each_divergence():
    optimizer = stabilize("sgd", max_consecutive=1)
    weights = _run(optimizer, NAN, NAN)
    with pytest.warns(UserWarning, match=r"Training has diverged. 2 steps in a row.*`first`"):
        optimizer.telemetry.read()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert optimizer.telemetry.read().divergence is not None
        optimizer.telemetry.acknowledge()
        assert optimizer.telemetry.read().divergence is None
        optimizer.raise_if_diverged()
        _run(optimizer, NAN, weights=weights)
        assert optimizer.telemetry.read().divergence is None  # counting began anew
    _run(optimizer, NAN, weights=weights)
    with pytest.warns(UserWarning, match="beginning with step 3"):
        optimizer.telemetry.read()
    assert optimizer.telemetry.peek().total_skipped == 4  # history stays


def test_an_applied_nan_is_never_silent():
    optimizer = optimizers.clip_by_global_norm("sgd", 1.0)
    weights = _run(optimizer, 1.0, (0.0, NAN), (NAN, NAN))
    assert np.isnan(weights[1].numpy()).any()
    with pytest.raises(DivergenceError, match=r"At step 2.*`second` was not finite.*was applied"):
        optimizer.raise_if_diverged()
    with pytest.warns(UserWarning, match=r"`gradstab.stabilize`"):
        optimizer.telemetry.read()
    optimizer.telemetry.acknowledge()
    optimizer.raise_if_diverged()


def test_the_smallest_budget_counts():
    chain = [transforms.SkipNonFinite(9), transforms.SkipNonFinite(1)]
    optimizer = optimizers.StabilizedOptimizer(keras.optimizers.SGD(0.1), chain)
    assert optimizer.max_consecutive == 1
    _run(optimizer, NAN, NAN)
    with pytest.raises(DivergenceError):
        optimizer.raise_if_diverged()
    assert optimizers.clip_by_norm("sgd", 1.0).max_consecutive is None


def test_variables_of_one_name_are_told_apart():
    weights = [tf.Variable(np.zeros(2, "float32")) for _ in range(2)]
    assert weights[0].name == weights[1].name
    optimizer = stabilize("sgd", clip=None)
    _run(optimizer, (3.0, NAN), weights=weights)
    reading = optimizer.telemetry.peek()
    assert len(reading.norms) == 2
    assert reading.bad_variable == ["Variable:0 (2)"]
    assert reading.norms["Variable:0"] == 3.0
