"""First weights of residual branches: Fixup, and branches that begin at zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from gradstab._validation import check_int
from gradstab.functional.depth import fixup_scale


def fixup_initializers(
    num_branches: int, layers_per_branch: int, seed: int | None = None
) -> list[Any]:
    r"""Return kernel initializers for the layers of one residual branch, by Fixup.

    Use them for deep residual nets without normalization, with relu or similar activations in the
    branches. All layers of a branch get He's initializer, scaled down with the depth of the net,
    except the last layer, which begins at zero:

    $$\mathrm{Var}(W) = \frac{2}{\mathrm{fan\_in}} L^{-1 / (m - 1)}, \qquad W_m = 0$$

    Fixup also starts the logits layer at zero, gives each branch a scalar factor that begins at 1,
    and puts a scalar bias, 0 at first, before each layer and each activation.
    `gradstab.layers.ScaledResidual(..., method="fixup")` includes everything inside a block.

    The initializers are Keras' own, so a model made with them loads where gradstab is not.

    Args:
        num_branches: L, the number of residual branches in the whole net.
        layers_per_branch: m, the number of layers with a kernel in each branch.
        seed: Seed of the values, different for each layer. Use another seed for each branch. None
            leaves the values to `keras.utils.set_random_seed`.

    Returns:
        `layers_per_branch` initializers, in the order of the layers.

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If a number is below 1, or `seed` is negative.

    Example:
        >>> import keras
        >>> from gradstab.initializers import fixup_initializers
        >>> first, last = fixup_initializers(num_branches=50, layers_per_branch=2, seed=0)
        >>> branch = [
        ...     keras.layers.Dense(64, activation="relu", kernel_initializer=first),
        ...     keras.layers.Dense(64, kernel_initializer=last),
        ... ]
        >>> first.scale, type(last).__name__
        (0.04, 'Zeros')

    Reference: Zhang, Dauphin and Ma, 2019, Fixup initialization: residual learning without
    normalization.
    """
    scale = 2.0 * fixup_scale(num_branches, layers_per_branch) ** 2
    if seed is not None:
        seed = check_int("seed", seed, minimum=0)
    return [
        *(
            keras.initializers.VarianceScaling(
                round(scale, 15),
                "fan_in",
                "untruncated_normal",
                seed=_derived_seed(seed, place),
            )
            for place in range(layers_per_branch - 1)
        ),
        keras.initializers.Zeros(),
    ]


def apply_fixup(branches: Sequence[Any], output_layer: Any = None, seed: int | None = None) -> None:
    """Reset the weights of a built model's residual branches, by Fixup.

    For an existing plain Keras model. All kernels of a branch but the last are drawn anew; the last
    becomes zero, and so do biases. See `fixup_initializers` for the formula. Trained weights are
    lost, and Fixup's scalars are not added: without them, nets of up to about a hundred layers
    train, at lower rates.

    Args:
        branches: All residual branches of the net, each a layer, a model or a list of layers in
            their order.
        output_layer: The layer that computes the logits, which is set to zero, or None.
        seed: Seed of the values. None leaves them to `keras.utils.set_random_seed`.

    Raises:
        TypeError: If `branches` is no list of layers or lists of layers.
        ValueError: If a branch has no layer with a kernel, or one that is not built.

    Example:
        >>> import keras
        >>> from gradstab.initializers import apply_fixup
        >>> x = inputs = keras.Input((8,))
        >>> branches = []
        >>> for _ in range(20):
        ...     branches.append([keras.layers.Dense(8, "relu"), keras.layers.Dense(8)])
        ...     x = keras.layers.add([x, branches[-1][1](branches[-1][0](x))])
        >>> model = keras.Model(inputs, x)
        >>> apply_fixup(branches, seed=0)
        >>> float(keras.ops.max(keras.ops.abs(branches[0][1].kernel)))
        0.0

    Reference: Zhang, Dauphin and Ma, 2019, Fixup initialization: residual learning without
    normalization.
    """
    kernels = [_layers_with_kernels(branch) for branch in _check_branches(branches)]
    if output_layer is not None:
        _check_kernel(output_layer)
    for place, layers in enumerate(kernels):
        own_seed = _derived_seed(seed, place)
        initializers = fixup_initializers(len(kernels), len(layers), own_seed)
        for layer, initializer in zip(layers, initializers, strict=True):
            layer.kernel.assign(initializer(layer.kernel.shape, layer.kernel.dtype))
            _set_bias_to_zero(layer)
    if output_layer is not None:
        _set_to_zero(output_layer)


def apply_skipinit(branches: Sequence[Any]) -> None:
    r"""Set a built model's residual branches to zero, so that each block begins as the identity.

    SkipInit and ReZero multiply the branch by a scalar $\alpha$ that begins at 0. A plain Keras
    model has no such scalar. The same function results if the branch's last layer is zero: its
    scale, if it is a normalization, else its kernel and bias. The rest of the branch keeps its
    weights. For blocks with the scalar itself, use `gradstab.layers.ScaledResidual`.

    $$y = x + \alpha F(x) \;\text{ or }\; x + W_m f(x), \qquad \alpha = 0,\; W_m = 0$$

    Args:
        branches: Residual branches, each a layer, a model or a list of layers in their order.

    Raises:
        TypeError: If `branches` is no list of layers or lists of layers.
        ValueError: If a branch has no layer with a kernel or scale, or one that is not built.

    References:
        - De and Smith, 2020, Batch normalization biases residual blocks towards the identity
          function in deep networks.
        - Goyal and others, 2017, Accurate, large minibatch SGD (a last scale of zero).
    """
    last = [_last_with_weights(branch) for branch in _check_branches(branches)]
    for layer in last:
        _set_to_zero(layer)


def _check_branches(branches: Any) -> list[list[Any]]:
    lists = isinstance(branches, list | tuple)
    nested = [_in_order(branch) for branch in branches] if lists else []
    if not nested or not all(isinstance(item, keras.Layer) for branch in nested for item in branch):
        raise TypeError(
            "`branches` must be a list with the layer, the model or the list of layers of each "
            f"residual branch. Received: branches={branches!r}"
        )
    return nested


def _in_order(branch: Any) -> list[Any]:
    if isinstance(branch, keras.Model):
        branch = branch.layers
    if isinstance(branch, list | tuple):
        return [layer for part in branch for layer in _in_order(part)]
    return [branch]


def _layers_with_kernels(branch: list[Any]) -> list[Any]:
    layers = [layer for layer in branch if hasattr(layer, "kernel_initializer")]
    if not layers:
        raise ValueError(
            "`branches` must hold layers with a kernel in each branch. Received: "
            f"{[layer.name for layer in branch]}"
        )
    for layer in layers:
        _check_kernel(layer)
    return layers


def _check_kernel(layer: Any) -> None:
    if not getattr(layer, "built", False) or not hasattr(layer, "kernel"):
        raise ValueError(
            "`branches` and `output_layer` must be built layers with one `kernel` each, as Dense "
            f"and Conv2D are. Received: {layer!r}"
        )


def _last_with_weights(branch: list[Any]) -> Any:
    for layer in reversed(branch):
        if getattr(layer, "gamma", None) is not None or hasattr(layer, "kernel"):
            return layer
    raise ValueError(
        "`branches` must hold a built layer with a kernel or a scale (`gamma`) in each branch. "
        f"Received: {[layer.name for layer in branch]}"
    )


def _set_to_zero(layer: Any) -> None:
    scale = getattr(layer, "gamma", None)
    scale = layer.kernel if scale is None else scale
    scale.assign(keras.ops.zeros_like(scale))
    if getattr(layer, "beta", None) is not None:
        layer.beta.assign(keras.ops.zeros_like(layer.beta))
    _set_bias_to_zero(layer)


def _set_bias_to_zero(layer: Any) -> None:
    bias = getattr(layer, "bias", None)
    if bias is not None:
        bias.assign(keras.ops.zeros_like(bias))


def _derived_seed(seed: int | None, place: int) -> int | None:
    if seed is None:
        return None
    words = np.random.SeedSequence(seed, spawn_key=(place,)).generate_state(1)
    return int(words[0]) & 0x7FFFFFFF
