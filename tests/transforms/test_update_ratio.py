"""`LimitUpdateRatio` round Keras' optimizers, against NumPy."""

import common_checks as checks
import keras
import numpy as np
import pytest
import references
import tensorflow as tf

from gradstab import optimizers, transforms

INNER = {
    "sgd": (
        lambda: keras.optimizers.SGD(0.5),
        lambda: references.Momentum(0.5),
    ),
    "momentum and decay": (
        lambda: keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.2),
        lambda: references.Momentum(0.1, 0.9, weight_decay=0.2),
    ),
    "adam": (
        lambda: keras.optimizers.Adam(0.1),
        lambda: references.Adam(0.1),
    ),
    "adam and decay": (
        lambda: keras.optimizers.Adam(0.05, weight_decay=0.1),
        lambda: references.Adam(0.05, weight_decay=0.1),
    ),
}


def _wrapped(inner, *before, max_ratio=0.1, epsilon=0.05):
    chain = [*before, transforms.LimitUpdateRatio(max_ratio, epsilon)]
    return optimizers.StabilizedOptimizer(inner, chain)


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("name", INNER)
def test_every_update_is_bounded_as_numpy_says(name, mode):
    make, reference = INNER[name]
    optimizer, weights = _wrapped(make()), checks.make_variables()
    weights[2].assign(np.zeros(4))  # begins at zero and must move
    expected = [value.astype("float64") for value in checks.values_of(weights)]
    rules = [reference() for _ in weights]
    step, _ = checks.stepper(optimizer, weights, mode)
    bounded = []
    for seed, scale in enumerate((1.0, 10.0, 0.01, 1e-6, 1.0)):
        gradients = checks.make_gradients(seed, scale=scale)
        before = checks.values_of(weights)
        step(*gradients)
        for place, (rule, gradient) in enumerate(zip(rules, gradients, strict=True)):
            made = rule.change(expected[place], gradient.numpy())
            kept = references.limit_update_ratio(expected[place], made, 0.1, 0.05)
            bounded.append(references.norm(kept) < references.norm(made))
            expected[place] = expected[place] + kept
            moved = weights[place].numpy() - before[place]
            limit = 0.1 * max(np.linalg.norm(before[place]), 0.05)
            assert np.linalg.norm(moved) <= limit * (1 + 1e-4)
    for got, value in zip(checks.values_of(weights), expected, strict=True):
        np.testing.assert_allclose(got, value, rtol=2e-5, atol=2e-6)
    assert any(bounded)
    if "sgd" in name:
        assert not all(bounded)


@pytest.mark.parametrize("name", INNER)
def test_an_update_within_the_bound_is_kept_to_the_last_bit(name):
    make, _ = INNER[name]
    optimizer, weights = _wrapped(make(), max_ratio=1e6), checks.make_variables()
    plain, expected = make(), checks.make_variables()
    for seed in range(4):
        optimizer.apply(checks.make_gradients(seed), weights)
        plain.apply(checks.make_gradients(seed), expected)
    for got, other in zip(weights, expected, strict=True):
        assert got.numpy().tobytes() == other.numpy().tobytes()


@pytest.mark.parametrize("frequency", [None, 2])
def test_averages_and_constraints_come_after_the_bound(frequency):
    class Halve(keras.constraints.Constraint):
        def __call__(self, w):
            return w * 0.5

    weight = keras.Variable(np.array([3.0, 4.0]))
    weight.constraint = Halve()
    inner = keras.optimizers.SGD(
        1.0, use_ema=True, ema_momentum=0.8, ema_overwrite_frequency=frequency
    )
    optimizer = _wrapped(inner, max_ratio=0.1)
    expected, mean = np.array([3.0, 4.0]), None
    for step in range(1, 5):
        gradient = np.array([10.0, 0.0]) if step % 2 else np.array([0.001, 0.002])
        optimizer.apply([tf.constant(gradient, "float32")], [weight])
        expected = expected + references.limit_update_ratio(expected, -gradient, 0.1, 0.05)
        mean = expected if mean is None else 0.8 * mean + 0.2 * expected
        if frequency and step % frequency == 0:
            expected = mean
        expected = expected * 0.5
        np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-5)
        (average,) = optimizer._model_variables_moving_average
        np.testing.assert_allclose(average.numpy(), mean, rtol=1e-5)
    assert weight.constraint is not None
    assert inner.use_ema


def test_a_variable_without_a_gradient_is_not_constrained():
    """As in Keras. The update stage, which sees all variables, constrained these as well."""
    idle, moved = keras.Variable(np.array([-1.0])), keras.Variable(np.array([-1.0]))
    idle.constraint = moved.constraint = keras.constraints.NonNeg()
    optimizer = _wrapped(keras.optimizers.SGD(0.1))
    optimizer.build([idle, moved])
    optimizer.apply([tf.constant([1.0])], [moved])
    assert (float(idle.numpy()[0]), float(moved.numpy()[0])) == (-1.0, 0.0)


def test_scales_that_are_overwritten_are_neither_unscaled_nor_bounded():
    """Keras' float8 layers pass the next value in place of a gradient."""
    weight, scale = keras.Variable(np.array([3.0, 4.0])), keras.Variable(np.array([1.0]))
    scale.overwrite_with_gradient = True
    optimizer = _wrapped(keras.optimizers.SGD(1.0, loss_scale_factor=4.0))
    optimizer.apply([tf.constant([4.0, 0.0]), tf.constant([9.0])], [weight, scale])
    np.testing.assert_allclose(weight.numpy(), [2.5, 4.0], rtol=1e-6)
    assert float(scale.numpy()[0]) == 9.0


def test_sparse_gradients_give_the_dense_update():
    optimizer, weights = _wrapped(keras.optimizers.Adam(1.0)), checks.make_variables()[:1]
    dense, expected = _wrapped(keras.optimizers.Adam(1.0)), checks.make_variables()[:1]
    rows = np.array([[1.0, 2.0], [3.0, -4.0], [1.0, 1.0]], "float32")
    summed = np.zeros((5, 2), "float32")
    np.add.at(summed, [2, 0, 2], rows)
    for _ in range(3):
        before = weights[0].numpy()
        optimizer.apply([checks.sparse([2, 0, 2], rows, (5, 2))], weights)
        dense.apply([tf.constant(summed)], expected)
        moved = np.linalg.norm(weights[0].numpy() - before)
        assert np.isclose(moved, 0.1 * np.linalg.norm(before), rtol=1e-4)
    np.testing.assert_allclose(weights[0].numpy(), expected[0].numpy(), rtol=1e-6, atol=1e-7)


def test_a_vetoed_step_is_not_bounded_into_being():
    optimizer = _wrapped(keras.optimizers.Adam(0.1, use_ema=True), transforms.SkipNonFinite())
    weights = checks.make_variables()
    optimizer.apply(checks.make_gradients(), weights)
    before = checks.contents([*weights, *checks.lasting_state(optimizer)])
    bad = checks.make_gradients()
    bad[0] = tf.fill((5, 2), np.inf)
    optimizer.apply(bad, weights)
    after = checks.contents([*weights, *checks.lasting_state(optimizer)])
    assert not checks.differences(before, after)
