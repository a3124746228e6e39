"""SGD in one kernel for each variable: where it is used, and where it is not."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab import stabilize
from gradstab.optimizers.step import fused

SETTINGS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "Nesterov": {"momentum": 0.7, "nesterov": True},
    "decay": {"momentum": 0.9, "weight_decay": 0.01},
}
KERNELS = {"ResourceApplyGradientDescent", "ResourceApplyKerasMomentum"}


def _steps(make, dtype="float32", xla=False):
    """Take three steps, the second one refused; return the weights, and the kinds of operations."""
    draw = np.random.default_rng(1)
    weights = [
        keras.Variable(draw.normal(size=shape), dtype=dtype) for shape in ((1003,), (3, 4), (1,))
    ]
    optimizer = make()
    optimizer.build(weights)
    step = tf.function(lambda gradients: optimizer.apply(gradients, weights), jit_compile=xla)
    for factor in (1.0, np.nan, 1e-3):
        gradients = [tf.constant(factor * draw.normal(size=v.shape), dtype) for v in weights]
        step(gradients)
    graph = step.get_concrete_function(gradients).graph
    return [v.numpy() for v in weights], {each.type for each in graph.get_operations()}


def _by_keras(settings, dtype="float32"):
    """Return the weights that Keras alone gives, eagerly, with the refused step left out."""
    draw = np.random.default_rng(1)
    shapes = (1003,), (3, 4), (1,)
    weights = [keras.Variable(draw.normal(size=shape), dtype=dtype) for shape in shapes]
    optimizer = keras.optimizers.SGD(0.0371, **settings)
    for factor in (1.0, np.nan, 1e-3):
        gradients = [tf.constant(factor * draw.normal(size=v.shape), dtype) for v in weights]
        if np.isfinite(factor):
            optimizer.apply(gradients, weights)
    return [v.numpy() for v in weights]


def _stabilized(settings):
    return lambda: stabilize(keras.optimizers.SGD(0.0371, **settings), clip=np.inf)


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("name", SETTINGS)
def test_one_kernel_gives_what_keras_gives_bit_by_bit(name):
    settings = SETTINGS[name]
    found, kinds = _steps(_stabilized(settings))
    assert len(kinds & KERNELS) == 1
    for ours, theirs in zip(found, _by_keras(settings), strict=True):
        assert ours.tobytes() == theirs.tobytes()


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("name", SETTINGS)
def test_a_kernel_that_rounds_otherwise_is_not_used(name, monkeypatch):
    def off_by_a_little(variable, moments, gradient, rate, momentum, nesterov):
        right(variable, moments, gradient, rate * (1 + 2e-7), momentum, nesterov)

    right = fused._apply
    monkeypatch.setattr(fused, "_apply", off_by_a_little)
    fused._rounds_as_keras.cache_clear()
    try:
        found, kinds = _steps(_stabilized(SETTINGS[name]))
    finally:
        fused._rounds_as_keras.cache_clear()
    assert not kinds & KERNELS
    for ours, theirs in zip(found, _by_keras(SETTINGS[name]), strict=True):
        assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize(
    ("dtype", "xla"), [("float64", False), ("bfloat16", False), ("float32", True)]
)
def test_it_is_for_float32_in_a_plain_graph(dtype, xla):
    found, kinds = _steps(_stabilized({"momentum": 0.9}), dtype, xla)
    assert not kinds & KERNELS
    for ours, theirs in zip(found, _by_keras({"momentum": 0.9}, dtype), strict=True):
        np.testing.assert_allclose(ours.astype("float64"), theirs.astype("float64"), rtol=1e-6)


def test_a_subclass_keeps_its_own_update():
    class Halved(keras.optimizers.SGD):
        def update_step(self, gradient, variable, learning_rate):
            super().update_step(gradient, variable, learning_rate / 2)

    found, kinds = _steps(lambda: stabilize(Halved(2 * 0.0371, momentum=0.9), clip=np.inf))
    assert not kinds & KERNELS
    for ours, theirs in zip(found, _by_keras({"momentum": 0.9}), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_trying_it_draws_no_number_and_takes_no_name():
    fused._rounds_as_keras.cache_clear()
    keras.utils.set_random_seed(3)
    keras.backend.clear_session()
    assert fused._rounds_as_keras(0.5, True)
    drawn, name = keras.random.uniform(()).numpy(), keras.optimizers.SGD().name
    keras.utils.set_random_seed(3)
    keras.backend.clear_session()
    assert (drawn, name) == (keras.random.uniform(()).numpy(), keras.optimizers.SGD().name)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("scope", ["strategy", "device"])
def test_it_is_tried_wherever_it_is_traced(scope):
    fused._rounds_as_keras.cache_clear()
    inside = {
        "strategy": tf.distribute.OneDeviceStrategy("/cpu:1").scope,
        "device": lambda: tf.device("/cpu:1"),
    }
    with inside[scope]():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        model.compile(_stabilized({"momentum": 0.9})(), "mse", jit_compile=False)
        model.fit(np.ones((8, 4)), np.ones((8, 2)), batch_size=4, verbose=0)
    assert fused._rounds_as_keras.cache_info().currsize == 1
    assert model.optimizer.telemetry.peek().cursor == 2
