"""Gains and critical points against published values and plain integrals."""

import math

import keras
import numpy as np
import pytest

from gradstab.initializers import CriticalNormal, CriticalUniform, critical_point, gain


@pytest.mark.parametrize(
    ("activation", "value"),
    [
        ("relu", np.sqrt(2)),
        ("tanh", 1.59254),
        ("gelu", 1.53353),
        (lambda x: keras.activations.gelu(x, approximate=True), 1.53358),
        ("silu", 1.67653),
        ("selu", 1.0),
        ("linear", 1.0),
        (None, 1.0),
        ("exponential", np.exp(-1)),  # E[exp(2z)] = e²
        (keras.layers.LeakyReLU(0.5), np.sqrt(2 / 1.25)),
        (np.tanh, 1.59254),
        # A jump off any grid: E is the normal tail beyond it.
        (lambda x: keras.ops.cast(x > 0.3, x.dtype), (math.erfc(0.3 / 2**0.5) / 2) ** -0.5),
    ],
)
def test_gain(activation, value):
    assert gain(activation) == pytest.approx(value, abs=1e-5)


ELEMENTWISE = [
    "celu", "elu", "gelu", "hard_shrink", "hard_sigmoid", "hard_silu", "hard_tanh", "leaky_relu",
    "log_sigmoid", "mish", "relu", "relu6", "selu", "sigmoid", "silu", "soft_shrink", "softplus",
    "softsign", "sparse_plus", "sparse_sigmoid", "squareplus", "tanh", "tanh_shrink",
]  # fmt: skip


def _by_trapezoid(function, variance):
    x = np.linspace(-12, 12, 2_400_001) * np.sqrt(variance)
    weight = np.exp(-np.square(x) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
    return np.trapezoid(np.square(function(x)) * weight, x)


def _values(name):
    function = getattr(keras.activations, name)
    return lambda x: keras.ops.convert_to_numpy(function(keras.ops.convert_to_tensor(x)))


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_gain_of_every_activation_is_the_integral(name):
    assert gain(name) == pytest.approx(_by_trapezoid(_values(name), 1.0) ** -0.5, rel=2e-6)


@pytest.mark.parametrize(
    ("fixed_point", "weight", "bias"),
    [(1 / 16, 1.1153806, 2.36877e-4), (1.0, 2.1533026, 0.1509646)],
)
def test_critical_tanh(fixed_point, weight, bias):
    for activation in ("tanh", np.tanh, keras.ops.tanh):
        point = critical_point(activation, fixed_point)
        assert point.weight_variance == pytest.approx(weight, rel=1e-6)
        assert point.bias_variance == pytest.approx(bias, rel=1e-5)


@pytest.mark.parametrize("fixed_point", [0.01, 1.0, 30.0])
def test_relu_is_critical_everywhere_without_bias(fixed_point):
    assert critical_point("relu", fixed_point) == (pytest.approx(2.0, abs=1e-7), 0.0)


@pytest.mark.quick_cases(5)
@pytest.mark.parametrize("name", ["silu", "gelu", "elu", "softsign", "soft_shrink", "hard_tanh"])
def test_the_point_is_a_fixed_one_and_its_slope_is_one(name):
    fixed_point = 0.7
    weight, bias = critical_point(name, fixed_point)
    function = _values(name)
    step = 1e-4
    again = weight * _by_trapezoid(function, fixed_point) + bias
    chi = weight * _by_trapezoid(
        lambda x: (function(x + step) - function(x - step)) / (2 * step), fixed_point
    )
    assert again == pytest.approx(fixed_point, rel=1e-6)
    assert chi == pytest.approx(1.0, rel=2e-4)  # The difference blurs kinks over its step.


@pytest.mark.parametrize(
    ("activation", "kind", "message"),
    [
        ("softmax", ValueError, "act on each entry by itself.*another result beside other entries"),
        ("glu", ValueError, "act on each entry by itself"),
        # What a mean or a spread over all entries does is the same in every shape.
        (lambda x: x - keras.ops.mean(x), ValueError, "beside other entries"),
        (lambda x: x / keras.ops.std(x), ValueError, "beside other entries"),
        (lambda x: keras.random.dropout(x, 0.5), ValueError, "always alike"),
        (lambda x: x[:1], ValueError, "It changed the shape"),
        (lambda x: keras.ops.log(x), ValueError, "finite at every number"),
        (lambda x: 0.0 * x, ValueError, "must not be zero everywhere"),
        ("no such", ValueError, "no such"),
        (3, TypeError, "`activation` must be the name"),
    ],
)
def test_what_has_no_gain(activation, kind, message):
    with pytest.raises(kind, match=message):
        gain(activation)


def test_a_step_has_no_critical_point():
    with pytest.raises(ValueError, match="must have a slope somewhere"):
        critical_point(lambda x: keras.ops.sign(x) + 0 * x)


@pytest.mark.parametrize("kind", [CriticalNormal, CriticalUniform])
@pytest.mark.parametrize(
    ("shape", "axes", "inputs"),
    [
        ((256, 300), None, 256),
        ((3, 3, 32, 256), None, 288),
        ((64, 8, 128), (0,), 64),  # queries of attention
        ((3, 3, 128, 4), (0, 1), 9),  # depthwise
        ((3, 3, 128, 64), (0, 1, 3), 576),  # transposed
    ],
)
def test_variance_by_layout(kind, shape, axes, inputs):
    initializer = kind("tanh", seed=2, input_axes=axes)
    values = keras.ops.convert_to_numpy(initializer(shape)).astype("float64")
    tolerance = 6 * np.sqrt(2 / values.size)
    assert values.var() * inputs == pytest.approx(2.1533026, rel=tolerance)
    assert abs(values.mean()) < 6 * np.sqrt(2.1533026 / inputs / values.size)


@pytest.mark.parametrize("kind", [CriticalNormal, CriticalUniform])
def test_the_biases_that_belong_to_it(kind):
    values = keras.ops.convert_to_numpy(kind("tanh").bias_initializer(seed=1)((20_000,)))
    assert values.var() == pytest.approx(0.1509646, rel=0.06)
    assert not keras.ops.convert_to_numpy(kind("relu").bias_initializer()((5,))).any()


def test_uniform_weights_end_where_they_should():
    values = keras.ops.convert_to_numpy(CriticalUniform("relu", seed=1)((128, 256)))
    limit = np.sqrt(3 * 2 / 128)
    assert 0.99 * limit < np.abs(values).max() <= limit
