"""What Fixup asks of the layers inside a residual branch."""

from __future__ import annotations

from typing import Any

import keras

from gradstab.functional.depth import fixup_scale

_ACTIVATIONS = (
    keras.layers.Activation,
    keras.layers.ReLU,
    keras.layers.LeakyReLU,
    keras.layers.PReLU,
    keras.layers.ELU,
)


def initialize_by_fixup(branch: Any, num_branches: int | None) -> None:
    """Have the kernels of a branch begin as Fixup says: small, and the last at zero.

    Args:
        branch: A layer, a model or a list of layers.
        num_branches: The number of residual branches in the whole net.

    Raises:
        ValueError: If no layer has a kernel, or if `num_branches` is None where it is needed.
    """
    layers = [layer for layer in _flat(branch) if _has_kernel(layer)]
    if not layers:
        raise ValueError(
            '`branch` must hold a layer with a kernel for `method="fixup"`. Received: '
            f"branch={branch!r}"
        )
    if num_branches is None and len(layers) > 1:
        raise ValueError(
            '`num_branches` must be a positive integer for `method="fixup"`: the number of '
            "residual branches in the whole net. Received: num_branches=None"
        )
    scale = 2.0 * fixup_scale(num_branches or 1, len(layers)) ** 2
    for layer in layers[:-1]:
        _initialize(layer, "VarianceScaling", scale)
    _initialize(layers[-1], "Zeros", 0.0)


def takes_bias(layer: Any) -> bool:
    """Whether a scalar bias stands before a layer."""
    return _has_kernel(layer) or isinstance(layer, _ACTIVATIONS)


def _flat(branch: Any) -> list[Any]:
    if isinstance(branch, keras.Model):
        branch = branch.layers
    if isinstance(branch, list | tuple):
        return [layer for part in branch for layer in _flat(part)]
    return [branch]


def _initialize(layer: Any, kind: str, scale: float) -> None:
    """Have a layer's kernel begin as Fixup says, unless it does already."""
    old = layer.kernel_initializer
    if type(old).__name__ == kind and getattr(old, "scale", scale) == scale:
        return
    if kind == "Zeros":
        layer.kernel_initializer = keras.initializers.Zeros()
    else:
        seed = old.get_config().get("seed") if hasattr(old, "get_config") else None
        layer.kernel_initializer = keras.initializers.VarianceScaling(
            scale, "fan_in", "untruncated_normal", seed=seed
        )
    if layer.built:
        layer.kernel.assign(layer.kernel_initializer(layer.kernel.shape, layer.kernel.dtype))


def _has_kernel(layer: Any) -> bool:
    # A recurrent layer only shows its cell's initializers, as properties.
    return "kernel_initializer" in vars(layer)
