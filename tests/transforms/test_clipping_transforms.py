"""The clips against Keras' own on one device, and against NumPy."""

import common_checks as checks
import keras
import numpy as np
import pytest
import references
import tensorflow as tf

from gradstab import optimizers, transforms

PAIRS = {
    "clipvalue": (optimizers.clip_by_value, 0.05, references.clip_by_value),
    "clipnorm": (optimizers.clip_by_norm, 0.1, references.clip_by_norm),
    "global_clipnorm": (optimizers.clip_by_global_norm, 0.2, references.clip_by_global_norm),
}


@pytest.mark.parametrize("argument", PAIRS)
@pytest.mark.parametrize("inner", [keras.optimizers.SGD, keras.optimizers.Adam])
def test_apply_does_what_keras_does(argument, inner):
    clip, bound, _ = PAIRS[argument]
    ours, theirs = clip(inner(0.1), bound), inner(0.1, **{argument: bound})
    weights, expected = checks.make_variables(), checks.make_variables()
    for seed, scale in enumerate((1.0, 0.001, 30.0)):
        ours.apply(checks.make_gradients(seed, scale=scale), weights)
        theirs.apply(checks.make_gradients(seed, scale=scale), expected)
    for got, other in zip(checks.values_of(weights), checks.values_of(expected), strict=True):
        np.testing.assert_allclose(got, other, atol=1e-6)
    assert ours.telemetry.read().clipped.tolist() == [True, False, True]


@pytest.mark.parametrize("argument", PAIRS)
def test_fit_does_what_keras_does(argument):
    clip, bound, _ = PAIRS[argument]
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(24, 5)).astype("float32"), draw.normal(size=(24, 1))

    def trained(optimizer):
        keras.utils.set_random_seed(3)
        model = keras.Sequential(
            [keras.Input((5,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)]
        )
        model.compile(optimizer, "mse")
        model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        return model

    ours = trained(clip(keras.optimizers.SGD(0.5, momentum=0.9), bound))
    theirs = trained(keras.optimizers.SGD(0.5, momentum=0.9, **{argument: bound}))
    assert ours.optimizer.telemetry.read().total_clipped > 0
    for got, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(got, other, atol=1e-6)


@pytest.mark.parametrize("argument", PAIRS)
@pytest.mark.parametrize("scale", [1.0, 1e20])
def test_the_update_is_the_clipped_gradient(argument, scale):
    clip, bound, reference = PAIRS[argument]
    gradients = checks.make_gradients(scale=scale)
    weights = [keras.Variable(tf.zeros_like(gradient)) for gradient in gradients]
    clip(keras.optimizers.SGD(1.0), bound).apply(gradients, weights)
    for weight, expected in zip(weights, reference(gradients, bound), strict=True):
        np.testing.assert_allclose(-weight.numpy(), expected, rtol=2e-6)


def test_float16_gradients_of_norm_608():
    weight = keras.Variable(np.ones(4), dtype="float16")
    optimizer = optimizers.clip_by_global_norm(keras.optimizers.SGD(1.0), 1.0)
    optimizer.apply([tf.fill([4], tf.constant(304.0, tf.float16))], [weight])
    np.testing.assert_array_equal(weight.numpy(), np.full(4, 0.5))
    assert optimizer.telemetry.read().grad_norm.tolist() == [608.0]


def test_the_order_of_the_list_counts():
    def step(*chain):
        weight = keras.Variable(np.zeros(2))
        inner = keras.optimizers.SGD(1.0)
        optimizers.StabilizedOptimizer(inner, chain).apply([tf.constant([10.0, 1.0])], [weight])
        return -weight.numpy()

    value, norm = transforms.ClipByValue, transforms.ClipByGlobalNorm
    np.testing.assert_allclose(step(value(1.0), norm(1.0)), [0.5**0.5, 0.5**0.5], rtol=1e-6)
    np.testing.assert_allclose(step(norm(1.0), value(0.5)), [0.5, 1 / 101**0.5], rtol=1e-6)


@pytest.mark.parametrize("mode", checks.MODES)
def test_clipping_by_value_keeps_nan(mode):
    weights = [keras.Variable(np.zeros(3))]
    step, _ = checks.stepper(optimizers.clip_by_value("sgd", 1.0, learning_rate=1.0), weights, mode)
    step(tf.constant([np.nan, np.inf, -0.5]))
    np.testing.assert_array_equal(weights[0].numpy(), [np.nan, -1.0, 0.5])


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (transforms.ClipByValue, "clip_value"),
        (transforms.ClipByNorm, "max_norm"),
        (transforms.ClipByGlobalNorm, "max_norm"),
        (transforms.LimitUpdateRatio, "max_ratio"),
        (lambda value: transforms.LimitUpdateRatio(1.0, value), "epsilon"),
    ],
)
def test_bounds_that_mean_nothing_are_refused(make, name):
    for bad in (0, 0.0, -1.0, float("nan"), -float("inf")):
        with pytest.raises(ValueError, match=f"`{name}` must be a positive float. Received: "):
            make(bad)
    for bad in ("1", None, True, [1.0]):
        with pytest.raises(TypeError, match=f"`{name}` must be a positive float. Received: "):
            make(bad)
    for bad in (1e39, 1e-50):  # would be infinite and zero in the step
        with pytest.raises(ValueError, match=f"`{name}` must be a number that float32 can hold"):
            make(bad)


def test_the_budget_of_skips_is_a_positive_integer():
    for bad in (0, -3):
        with pytest.raises(ValueError, match="`max_consecutive` must be a positive integer"):
            transforms.SkipNonFinite(bad)
    for bad in (1.5, None, True):
        with pytest.raises(TypeError, match="`max_consecutive` must be a positive integer"):
            transforms.SkipNonFinite(bad)
