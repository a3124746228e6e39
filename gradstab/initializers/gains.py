"""The effect of an activation on a signal's size: integrals over normally distributed inputs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Final

import keras
import numpy as np

from gradstab.functional._backend import slope

Array = np.ndarray[Any, Any]

# Beyond so many deviations a normal distribution holds nothing that counts, times exp(2x) even.
_REACH: Final = 14.0
_TOLERANCE: Final = 1e-13
_MOST_HALVINGS: Final = 48
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)


def gain(activation: Any) -> float:
    r"""Return the factor of the weights that compensates an activation at inputs of variance 1.

    $$\mathrm{gain}(\varphi) = 1 / \sqrt{\mathrm{E}[\varphi(z)^2]}, \qquad z \sim N(0, 1)$$

    With weights of variance gain² / fan_in, the second moment of a layer's pre-activations is 1 if
    that of the layer before is 1. The gain is √2 for relu (`HeNormal`) and 1 for a linear layer
    (`LecunNormal`). Pass it to `Orthogonal(gain=...)`, or to `VarianceScaling(scale=gain(φ)²)`.

    The integration is adaptive and copes with kinks and jumps. The result is accurate to about 1e-9
    for an activation that computes in float64, and to 1e-6 in float32.

    Args:
        activation: Name of a Keras activation, a function of one tensor (NumPy's are fine), an
            activation layer such as `keras.layers.LeakyReLU(0.2)`, or `None` for linear.

    Raises:
        TypeError: If the activation is none of these.
        ValueError: If the name is unknown, or if the activation is not elementwise (softmax), not
            finite somewhere, or zero everywhere.

    Example:
        >>> from gradstab.initializers import gain
        >>> print(f"{gain('relu'):.5f} {gain('tanh'):.5f} {gain('silu'):.5f}")
        1.41421 1.59254 1.67653

    Reference: He, Zhang, Ren and Sun, 2015, Delving deep into rectifiers: surpassing human-level
    performance on ImageNet classification.
    """
    function = elementwise(activation)
    moment = second_moment(function, 1.0)
    if not moment > 0:
        raise ValueError(
            "`activation` must not be zero everywhere: no weights can make up for that. Received: "
            f"activation={activation!r}"
        )
    return 1.0 / math.sqrt(moment)


def elementwise(activation: Any) -> Callable[[Any], Any]:
    """Return an activation as a function of a tensor, and make sure that it acts on each entry.

    Raises:
        TypeError: If it is no activation.
        ValueError: If it is unknown, not finite, or not elementwise.
    """
    function = _resolve(activation)
    points = np.linspace(-4.0, 4.0, 12)
    try:
        every = _values(function, points.reshape(2, 6))
        # Another shape, and points with another mean, so that a mean over all is noticed too.
        some = _values(function, points[4:10].reshape(3, 2))
    except Exception as error:
        raise ValueError(
            f"{_needs(activation)}. It failed on an array of shape (2, 6) or (3, 2)"
        ) from error
    if every.shape != (2, 6) or some.shape != (3, 2):
        raise ValueError(f"{_needs(activation)}. It changed the shape")
    if not (np.isfinite(every).all() and np.isfinite(some).all()):
        raise ValueError(
            "`activation` must be finite at every number. Received: "
            f"activation={activation!r}, which is not between -4 and 4"
        )
    if not np.allclose(every.ravel()[4:10], some.ravel(), rtol=1e-6, atol=1e-9):
        raise ValueError(f"{_needs(activation)}. It gave another result beside other entries")
    return function


def _needs(activation: Any) -> str:
    return (
        "`activation` must act on each entry by itself, and always alike. Received: "
        f"activation={activation!r}"
    )


def _resolve(activation: Any) -> Callable[[Any], Any]:
    if isinstance(activation, keras.Layer):
        # Calling the layer itself would cast to its dtype.
        return functools.partial(_of_layer, activation)
    if activation is not None and not isinstance(activation, str) and not callable(activation):
        raise TypeError(
            "`activation` must be the name of a Keras activation, a function, an activation layer "
            f"or None. Received: activation={activation!r}"
        )
    function: Callable[[Any], Any] = keras.activations.get(activation)
    return function


def _of_layer(layer: Any, x: Any) -> Any:
    if not layer.built:
        layer.build(x.shape)
    return layer.call(x)


def second_moment(function: Callable[[Any], Any], variance: float) -> float:
    """Return E[φ(x)²] for x ~ N(0, variance).

    Args:
        function: φ, as `elementwise` returns it.
        variance: A positive float.
    """
    return _expectation(lambda x: np.square(_values(function, x)), variance)


def second_moment_of_slope(function: Callable[[Any], Any], variance: float) -> float:
    """Return E[φ'(x)²] for x ~ N(0, variance); a jump of φ counts as flat.

    Args:
        function: φ, as `elementwise` returns it.
        variance: A positive float.
    """
    return _expectation(lambda x: np.square(_slopes(function, x)), variance)


def _values(function: Callable[[Any], Any], x: Array) -> Array:
    result = function(keras.ops.convert_to_tensor(x, "float64"))
    return np.asarray(keras.ops.convert_to_numpy(result), "float64")


def _slopes(function: Callable[[Any], Any], x: Array) -> Array:
    exact = slope(function, x)
    if exact is not None:
        return np.asarray(exact, "float64")
    step = 1e-6
    return (_values(function, x + step) - _values(function, x - step)) / (2 * step)


def _expectation(function: Callable[[Array], Array], variance: float) -> float:
    """Return E[f(x)] for x ~ N(0, variance), by halving intervals until nothing changes.

    Intervals begin at multiples of a power of two, so that most kinks lie at their ends.
    """
    deviation = math.sqrt(variance)
    width = 2.0 ** math.floor(math.log2(deviation / 4))
    count = math.ceil(_REACH * deviation / width)
    low = width * np.arange(-count, count)
    high = low + width
    total = 0.0
    coarse = _over(function, low, high, deviation)
    for _ in range(_MOST_HALVINGS):
        middle = (low + high) / 2
        left = _over(function, low, middle, deviation)
        right = _over(function, middle, high, deviation)
        unsettled = np.abs(left + right - coarse) > _TOLERANCE * (1 + np.abs(total))
        total += float(np.sum((left + right)[~unsettled]))
        low = np.concatenate([low[unsettled], middle[unsettled]])
        high = np.concatenate([middle[unsettled], high[unsettled]])
        coarse = np.concatenate([left[unsettled], right[unsettled]])
        if not len(low) or len(low) > 100_000:
            break
    total += float(np.sum(coarse))
    if not math.isfinite(total):
        raise ValueError(
            "`activation` must be finite at every number that layers put into it. Received: one "
            f"that is not, within {_REACH:g} deviations of a normal distribution of variance "
            f"{variance:g}"
        )
    return total


def _over(function: Callable[[Array], Array], low: Array, high: Array, deviation: float) -> Array:
    """Integrate f times the normal density over each interval, by Gauss and Legendre's rule."""
    half = (high - low)[:, None] / 2
    x = (low + high)[:, None] / 2 + half * _NODES
    density = np.exp(-np.square(x / deviation) / 2) / (deviation * math.sqrt(2 * math.pi))
    result: Array = np.sum(half * _WEIGHTS * function(x) * density, axis=1)
    return result
