r"""Weights and biases at which a signal neither grows nor shrinks with depth.

Mean-field theory follows the variance q of a wide layer's pre-activations, and the factor χ by
which a layer changes the variance of a gradient on its way back:

$$q' = \sigma_w^2\,\mathrm{E}[\varphi(\sqrt q z)^2] + \sigma_b^2, \qquad
\chi = \sigma_w^2\,\mathrm{E}[\varphi'(\sqrt q z)^2], \qquad z \sim N(0, 1)$$

with weights of variance σ_w² / fan_in and biases of variance σ_b². The conditions q' = q at a given
fixed point q* and χ = 1 there determine the two variances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Final, NamedTuple, final

import keras
from keras import ops

from gradstab._serialization import register
from gradstab._validation import check_float
from gradstab.initializers.gains import elementwise, second_moment, second_moment_of_slope
from gradstab.initializers.input_axes import check_axes, fan_in

# What an integral of doubles may be off by.
_ROUNDING: Final = 1e-8


class CriticalPoint(NamedTuple):
    """Variances at which signals and gradients keep their size.

    Attributes:
        weight_variance: σ_w²: the variance of a weight times the number of inputs of a unit.
        bias_variance: σ_b².
    """

    weight_variance: float
    bias_variance: float


def critical_point(activation: Any, fixed_point: float = 1.0) -> CriticalPoint:
    r"""Return the variances that keep pre-activations at variance q*, and gradients at their size.

    $$\sigma_w^2 = 1 / \mathrm{E}[\varphi'(\sqrt{q^*} z)^2], \qquad
    \sigma_b^2 = q^* - \sigma_w^2\,\mathrm{E}[\varphi(\sqrt{q^*} z)^2]$$

    For relu, leaky relu and linear layers every q* is a fixed point, and no bias is needed. If a
    variance would have to be negative, there is no critical point at that q*.

    Args:
        activation: As in `gain`.
        fixed_point: q*, a positive float: the variance of the pre-activations.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If there is no critical point at q*; the message names one where there is.

    Example:
        >>> from gradstab.initializers import critical_point
        >>> weight, bias = critical_point("tanh", fixed_point=1 / 16)
        >>> print(f"{weight:.7f} {bias:.5e}")
        1.1153806 2.36877e-04

    References:
        - Poole, Lahiri, Raghu, Sohl-Dickstein and Ganguli, 2016, Exponential expressivity in deep
          neural networks through transient chaos.
        - Schoenholz, Gilmer, Ganguli and Sohl-Dickstein, 2017, Deep information propagation.
    """
    check_float("fixed_point", fixed_point)
    function = elementwise(activation)
    point = _point(function, fixed_point)
    if point is None:
        raise ValueError(
            "`activation` must have a slope somewhere: else no gradient passes it. Received: "
            f"activation={activation!r}"
        )
    if point.bias_variance < 0:
        others = [2.0**power for power in range(-10, 11)]
        nearest = sorted(others, key=lambda other: abs(math.log(other / fixed_point)))
        found = next(
            (q for q in nearest if (p := _point(function, q)) and p.bias_variance >= 0), None
        )
        advice = "it has none between 2⁻¹⁰ and 2¹⁰ either: use `lsuv`" if found is None else (
            f"it has one at fixed_point={found:g}"
        )  # fmt: skip
        raise ValueError(
            f"`fixed_point` must be one where this activation has a critical point; {advice}. "
            f"Received: activation={activation!r}, fixed_point={fixed_point!r}, where the variance "
            f"of the biases would have to be {point.bias_variance:.3g}"
        )
    return point


def _point(function: Any, fixed_point: float) -> CriticalPoint | None:
    slope = second_moment_of_slope(function, fixed_point)
    if not slope > 0:
        return None
    weight = 1.0 / slope
    bias = fixed_point - weight * second_moment(function, fixed_point)
    if abs(bias) < _ROUNDING * fixed_point:
        bias = 0.0
    return CriticalPoint(weight, bias)


class _Critical(keras.initializers.Initializer):
    """What both have in common: all but the distribution. Abstract."""

    distribution: ClassVar[str]

    def __init__(
        self,
        activation: Any = "tanh",
        fixed_point: float = 1.0,
        seed: Any = None,
        input_axes: Sequence[int] | None = None,
    ) -> None:
        self.activation = activation
        self.fixed_point = check_float("fixed_point", fixed_point)
        self.input_axes = None if input_axes is None else check_axes(input_axes)
        self._draw = keras.initializers.VarianceScaling(
            1.0, "fan_in", distribution=self.distribution, seed=seed
        )
        self.seed = self._draw.seed
        self._point = critical_point(activation, self.fixed_point)

    @property
    def weight_variance(self) -> float:
        """σ_w²: variance of a weight times the number of inputs of a unit."""
        return self._point.weight_variance

    @property
    def bias_variance(self) -> float:
        """σ_b²: variance of a bias."""
        return self._point.bias_variance

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> Any:
        """Return weights of a shape, drawn in float32 and then cast to `dtype`."""
        number = fan_in(shape, self.input_axes)
        drawn = self._draw((max(1, number), math.prod(shape) // max(1, number)), "float32")
        # As (inputs, units) the fan is what it should be; the draw itself has no order.
        weights = ops.reshape(drawn, shape) * math.sqrt(self.weight_variance)
        return ops.cast(weights, dtype or keras.config.floatx())

    def bias_initializer(self, seed: Any = None) -> keras.initializers.Initializer:
        """Return the initializer of the biases that belongs to it, one of Keras' own.

        Args:
            seed: As above; by default one that Keras draws.
        """
        deviation = math.sqrt(self.bias_variance)
        if not deviation:
            return keras.initializers.Zeros()
        if self.distribution == "uniform":
            limit = math.sqrt(3.0) * deviation
            return keras.initializers.RandomUniform(-limit, limit, seed=seed)
        return keras.initializers.RandomNormal(0.0, deviation, seed=seed)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this initializer."""
        activation = self.activation
        if activation is not None and not isinstance(activation, str):
            try:
                activation = keras.saving.serialize_keras_object(activation)
            except Exception as error:
                raise ValueError(
                    "`activation` must be one that Keras can save: a name, an activation layer, or "
                    "a function registered by `keras.saving.register_keras_serializable`. "
                    f"Received: activation={activation!r}"
                ) from error
        return {
            "activation": activation,
            "fixed_point": self.fixed_point,
            "seed": self._draw.get_config()["seed"],
            "input_axes": None if self.input_axes is None else list(self.input_axes),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """Rebuild it from what `get_config` returned."""
        activation = config.get("activation")
        if isinstance(activation, dict):
            activation = keras.saving.deserialize_keras_object(activation)
            config = {**config, "activation": activation}
        return cls(**config)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(activation={self.activation!r}, "
            f"fixed_point={self.fixed_point:g})"
        )


@final
@register
class CriticalNormal(_Critical):
    r"""Normally distributed weights that keep signals and gradients through many layers.

    $$\mathrm{Var}(W) = \sigma_w^2 / \mathrm{fan\_in}, \qquad
    \sigma_w^2 = 1 / \mathrm{E}[\varphi'(\sqrt{q^*} z)^2]$$

    Together with biases of variance σ_b² (`bias_initializer()`), a wide layer maps pre-activations
    of variance q* to pre-activations of variance q*, and keeps the size of gradients. Use it for
    deep plain nets, mainly with saturating activations; for relu it is `HeNormal` without
    truncation. If φ·φ'' has a positive mean (silu, gelu, elu), the variance drifts away from q*,
    which limits the depth.

    Args:
        activation: Activation of the layers, as in `gain`: a name, a function, a layer, or `None`.
        fixed_point: q*, the variance of the pre-activations, a positive float. Small values keep a
            saturating activation in its linear part.
        seed: An integer, a `keras.random.SeedGenerator`, or `None`. As with Keras' initializers, an
            instance returns the same values each time, unless its seed is a `SeedGenerator`: create
            one instance per layer.
        input_axes: The kernel's axes that a unit sums over, where these are not all but the last:
            `(0,)` for the query, key and value kernels (inputs, heads, size) of attention and for
            like kernels of `EinsumDense`; `(0, 1)` for a depthwise kernel (height, width, inputs,
            multiplier); `(0, 1, 3)` for `Conv2DTranspose` (height, width, outputs, inputs), whose
            strides divide the inputs of a unit further. The shape does not show this.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the activation has no critical point at q*; the message names a q* that has
            one, or `lsuv`, which needs none.

    Example:
        >>> import keras
        >>> from gradstab.initializers import CriticalNormal
        >>> initializer = CriticalNormal("tanh", fixed_point=1.0, seed=0)
        >>> print(f"{initializer.weight_variance:.5f} {initializer.bias_variance:.5f}")
        2.15330 0.15096
        >>> layer = keras.layers.Dense(
        ...     64, "tanh", kernel_initializer=initializer,
        ...     bias_initializer=initializer.bias_initializer())

    Reference: Schoenholz, Gilmer, Ganguli and Sohl-Dickstein, 2017, Deep information propagation.
    """

    distribution = "untruncated_normal"


@final
@register
class CriticalUniform(_Critical):
    r"""Uniformly distributed weights that keep signals and gradients through many layers.

    $$W \sim U(-a, a), \qquad a = \sqrt{3\,\sigma_w^2 / \mathrm{fan\_in}}$$

    Like `CriticalNormal`, with the same variances; in wide layers only these matter.

    Args:
        activation: As in `CriticalNormal`.
        fixed_point: As there.
        seed: As there.
        input_axes: As there.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the activation has no critical point at q*.

    Example:
        >>> from gradstab.initializers import CriticalUniform
        >>> CriticalUniform("relu", seed=0).bias_variance
        0.0

    Reference: Schoenholz, Gilmer, Ganguli and Sohl-Dickstein, 2017, Deep information propagation.
    """

    distribution = "uniform"
