r"""Fixup and SkipInit: first weights for residual nets without normalization."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final, final

import keras
import numpy as np
from keras import ops

from gradstab._validation import check_float, check_int
from gradstab.initializers._branches import find_branches, output_layers, path_of
from gradstab.initializers.gains import gain

_TRANSPOSED: Final = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
_DEPTHWISE: Final = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)


@final
@dataclasses.dataclass(frozen=True)
class ResidualBranch:
    """One residual branch of a model, and what became of it.

    Attributes:
        name: Path of the layer that adds it.
        layers: Paths of its layers with a kernel, from the input on.
        factor: What the kernels were scaled by: of `fixup`, those before the last, against He's; of
            `skip_init`, the branch as a whole.
    """

    name: str
    layers: tuple[str, ...]
    factor: float


def fixup_initializers(
    num_branches: int,
    layers_per_branch: int = 2,
    activation: Any = "relu",
    seed: int | None = None,
) -> list[keras.initializers.Initializer]:
    r"""Return Fixup's kernel initializers, one for each layer of a residual branch.

    Use it to write a residual net without normalization. The kernels before the last are He's,
    scaled down with the number of branches, and the last kernel is zero, so that the net begins as
    its shortcuts and the first updates of all branches together move the output by a step that
    does not depend on the depth:

    $$\mathrm{Var}(W) = \frac{g^2}{\mathrm{fan\_in}} \cdot L^{-1/(m-1)}, \qquad W_m = 0$$

    (a factor $L^{-1/(2m-2)}$ on the kernel) with $L$ branches of $m$ layers and $g$ the
    activation's gain, $\sqrt 2$ for relu. What else belongs to Fixup is in
    `gradstab.layers.ScaledResidual(..., alpha_initializer=1.0, scalar_biases=True)`, and a kernel
    of zeros in the layer that makes the output. They are Keras' own classes: a model with them
    loads where gradstab is not.

    Args:
        num_branches: $L$, the number of residual branches in the whole net.
        layers_per_branch: $m$, the layers with a kernel in one branch.
        activation: What stands between them.
        seed: Makes the kernels reproducible; use another for each branch.

    Returns:
        A list of `layers_per_branch` initializers.

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If it is below 1.

    Example:
        >>> from gradstab.initializers import fixup_initializers
        >>> first, last = fixup_initializers(num_branches=25, layers_per_branch=2, seed=0)
        >>> f"{first.scale:.3f}", type(last).__name__  # 2 · 25^-1, He's being 2
        ('0.080', 'Zeros')

    References:
        Zhang, Dauphin and Ma, 2019, Fixup initialization: residual learning without normalization.
    """
    num_branches = check_int("num_branches", num_branches)
    layers_per_branch = check_int("layers_per_branch", layers_per_branch)
    if seed is not None:
        seed = check_int("seed", seed, minimum=0)
    scale = (gain(activation) * _fixup_factor(num_branches, layers_per_branch)) ** 2
    return [
        *(
            keras.initializers.VarianceScaling(scale, "fan_in", seed=_derived(seed, place))
            for place in range(layers_per_branch - 1)
        ),
        keras.initializers.Zeros(),
    ]


def fixup(
    model: Any,
    *,
    branches: Sequence[Sequence[Any]] | None = None,
    activation: Any = "relu",
    zero_output: bool = True,
    seed: int | None = None,
) -> list[ResidualBranch]:
    r"""Give a built model Fixup's first weights, in place.

    For each residual branch the kernels before the last are drawn anew from He's distribution times
    $L^{-1/(2m-2)}$, with $L$ the number of branches found and $m$ the layers with a kernel in the
    branch; the last becomes zero, and so do all biases in the branch. The layer that makes the
    output becomes zero too. All other weights stay as they are.

    Branches are found where a `gradstab.layers.ScaledResidual` holds or adds one, and in functional
    models of Keras' own layers at each `keras.layers.Add` (or `+`) of two ways from one tensor: the
    branch is the way with more kernels. Fixup's scalar biases and multipliers are in `ScaledResidual`
    only; a plain model starts from the right weights without them.

    Args:
        model: A built `keras.Model`.
        branches: Lists of layers, one for each branch, where they can't be found.
        activation: What stands between the layers of a branch.
        zero_output: Whether to set the output layer's kernel and bias to zero, as Fixup does.
        seed: Makes the kernels reproducible.

    Returns:
        What was found, in the order of depth.

    Raises:
        TypeError: If `model` is not a built layer or model, or `branches` are not lists of layers.
        ValueError: If there is no branch, if it can't be told which of two ways is the branch, or
            if a layer in a branch has kernels of another kind than Dense and convolutions have.

    Example:
        >>> import keras
        >>> from gradstab.initializers import fixup
        >>> x = inputs = keras.Input((8,))
        >>> for _ in range(2):
        ...     y = keras.layers.Dense(8, activation="relu")(x)
        ...     x = keras.layers.Add()([x, keras.layers.Dense(8)(y)])
        >>> model = keras.Model(inputs, keras.layers.Dense(3)(x))
        >>> [(len(branch.layers), round(branch.factor, 4)) for branch in fixup(model, seed=0)]
        [(2, 0.7071), (2, 0.7071)]

    References:
        Zhang, Dauphin and Ma, 2019, Fixup initialization: residual learning without normalization.
    """
    if seed is not None:
        seed = check_int("seed", seed, minimum=0)
    found = find_branches(model, branches)
    squared_gain = gain(activation) ** 2
    report = []
    place = 0
    for name, _, layers in found:
        factor = _fixup_factor(len(found), len(layers))
        for layer in layers[:-1]:
            _draw(layer, squared_gain * factor**2, _derived(seed, place))
            place += 1
        _scale(layers[-1], 0.0)
        for layer in layers:
            if getattr(layer, "bias", None) is not None:
                layer.bias.assign(ops.zeros_like(layer.bias))
        report.append(ResidualBranch(name, tuple(path_of(layer) for layer in layers), factor))
    if zero_output:
        for layer in output_layers(model):
            _scale(layer, 0.0)
    return report


def skip_init(
    model: Any, value: float = 0.0, *, branches: Sequence[Sequence[Any]] | None = None
) -> list[ResidualBranch]:
    r"""Scale what each residual branch of a built model puts out, in place: SkipInit.

    Where a `gradstab.layers.ScaledResidual` adds the branch, its $\alpha$ becomes `value`. In a
    plain model of Keras' layers there is no such scalar, and what the branch ends with is
    multiplied by `value` instead: the gain and offset of a last `BatchNormalization` or
    `LayerNormalization` (zero-gain initialisation, as large-batch ResNets have it), else kernel and
    bias of its last layer. The function at the start is the same. Branches are found as by `fixup`.

    Args:
        model: A built `keras.Model`.
        value: What branches are multiplied by, at least 0: 0 makes each block its shortcut;
            $d^{-1/2}$ with $d$ branches keeps the variance within a factor of $e$ at any depth.
        branches: Lists of layers, one for each branch, where they can't be found.

    Returns:
        What was found, in the order of depth.

    Raises:
        TypeError: If `model` is not a built layer or model, or `value` is not a number.
        ValueError: If `value` is negative or not finite, or as for `fixup`.

    Example:
        >>> import keras
        >>> from gradstab.initializers import skip_init
        >>> from gradstab.layers import ScaledResidual
        >>> block = ScaledResidual(keras.layers.Dense(4), alpha_initializer=1.0)
        >>> model = keras.Sequential([keras.Input((4,)), block])
        >>> len(skip_init(model)), float(block.alpha.numpy())
        (1, 0.0)

    References:
        - De and Smith, 2020, Batch normalization biases residual blocks towards the identity
          function in deep networks.
        - Goyal et al., 2017, Accurate, large minibatch SGD: training ImageNet in 1 hour.
    """
    value = check_float("value", value, include_minimum=True)
    report = []
    for name, end, layers in find_branches(model, branches):
        alpha = getattr(end, "alpha", None)
        if alpha is not None:
            alpha.assign(ops.full((), value, alpha.dtype))
        else:
            _scale(end, value)
        report.append(ResidualBranch(name, tuple(path_of(layer) for layer in layers), value))
    return report


def _fixup_factor(num_branches: int, num_layers: int) -> float:
    return 1.0 if num_layers == 1 else float(num_branches ** (-1.0 / (2 * num_layers - 2)))


def _draw(layer: Any, scale: float, seed: int | None) -> None:
    """Give a layer a kernel of variance `scale / fan_in`, drawn in float32."""
    kernel = layer.kernel
    shape = tuple(kernel.shape)
    fan_in = int(np.prod(shape[:-1]))
    if isinstance(layer, _TRANSPOSED):
        fan_in = int(np.prod(shape)) // shape[-2]
    elif isinstance(layer, _DEPTHWISE):
        fan_in = int(np.prod(shape[:-2]))
    # Keras' own distribution with He's factor: a normal one cut off at two deviations.
    draw = keras.initializers.VarianceScaling(1.0, "fan_in", seed=seed)
    values = draw((fan_in, int(np.prod(shape)) // fan_in), dtype="float32")
    kernel.assign(ops.cast(ops.reshape(values, shape) * np.sqrt(scale), kernel.dtype))


def _scale(layer: Any, value: float) -> None:
    for name in ("kernel", "bias", "gamma", "beta"):
        variable = getattr(layer, name, None)
        if isinstance(variable, keras.Variable):
            variable.assign(variable * value)


def _derived(seed: int | None, place: int) -> int | None:
    if seed is None:
        return None
    words = np.random.SeedSequence(seed, spawn_key=(place,)).generate_state(1)
    return int(words[0]) & 0x7FFFFFFF
