"""Copies of a model with one thing changed, for trials that no data or rate can stand in for."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable
from typing import Any, Final

import keras
import numpy as np

from gradstab.diagnosis.looks.structure import StructureLook
from gradstab.diagnosis.measuring.structure import kernel_of, leaf_layers

SQUASHING: Final = ("sigmoid", "hard_sigmoid", "tanh", "hard_tanh", "softsign", "softmax")
# Hidden layers of a wider copy have at least so many units.
_WIDE: Final = 64


def copy_of_optimizer(optimizer: Any) -> Any:
    """Return an optimizer of the same settings that is not built.

    Raises:
        ValueError: If it can't be made from its own config.
    """
    try:
        config = keras.optimizers.serialize(optimizer)
        return keras.optimizers.deserialize(
            copy.deepcopy(config), custom_objects={type(optimizer).__name__: type(optimizer)}
        )
    except Exception as error:  # an own class may lack a config, or need what is not in it
        raise ValueError(f"{type(optimizer).__name__} can't be copied from its config") from error


def first_weights(model: Any, seed: int, structure: StructureLook) -> list[tuple[Any, Any]]:
    """Return kernels as He's and Glorot's initializers draw them, and biases of zero."""
    random = np.random.default_rng(seed)
    found = []
    for layer in leaf_layers(model):
        kernel = kernel_of(layer)
        seen = structure.layer(layer.name)
        if kernel is None or seen is None or not layer.trainable or not seen.fan_in:
            continue
        rectified = seen.activation in ("relu", "leaky_relu", "elu", "gelu", "silu", "relu6")
        fans = 2 / seen.fan_in if rectified else 2 / (seen.fan_in + (seen.fan_out or seen.fan_in))
        values = random.standard_normal(tuple(kernel.shape)) * math.sqrt(fans)
        found.append((kernel, values.astype("float32")))
        bias = getattr(layer, "bias", None)
        if bias is not None and hasattr(bias, "shape"):
            found.append((bias, np.zeros(tuple(bias.shape), "float32")))
    return found


def varied(model: Any, change: Callable[[Any, dict[str, Any]], bool], seed: int) -> Any:
    """Return a copy in which the configs of some layers are changed, or `None`.

    Args:
        model: A sequential or functional model.
        change: Gets a layer and its config, changes that, and says whether it did.
        seed: Of the first weights where a shape is another.
    """
    changed: list[str] = []

    def clone(layer: Any) -> Any:
        config = layer.get_config()
        if change(layer, config):
            changed.append(layer.name)
        return type(layer).from_config(config)

    if not isinstance(model, keras.Sequential) and not hasattr(model, "outputs"):
        return None
    with contextlib.suppress(Exception):  # layers of a person's own need not be copyable
        copied = keras.models.clone_model(model, clone_function=clone)
        if not changed:
            return None
        random = np.random.default_rng(seed)
        for ours, theirs in zip(leaf_layers(copied), leaf_layers(model), strict=True):
            for mine, yours in zip(ours.weights, theirs.weights, strict=True):
                if tuple(mine.shape) == tuple(yours.shape):
                    mine.assign(yours.value)
                elif len(mine.shape) >= 2 and "float" in str(mine.dtype):
                    fan = math.prod(mine.shape[:-1])
                    mine.assign(random.standard_normal(tuple(mine.shape)) * math.sqrt(2 / fan))
                else:
                    mine.assign(np.zeros(tuple(mine.shape)))
        return copied
    return None


def rectified(heads: set[str | None], structure: StructureLook) -> Callable[..., bool]:
    """Have hidden layers that squash, or that are linear one after the other, rectify instead."""

    def change(layer: Any, config: dict[str, Any]) -> bool:
        seen = structure.layer(layer.name)
        if seen is None or layer.name in heads or "activation" not in config:
            return False
        if isinstance(layer, keras.layers.RNN) or (
            kernel_of(layer) is None and not config["activation"]
        ):
            return False
        if seen.activation in SQUASHING or seen.activation == "linear":
            config["activation"] = "relu"
            return True
        return False

    return change


def without_dropout() -> Callable[..., bool]:
    """Have nothing dropped."""

    def change(layer: Any, config: dict[str, Any]) -> bool:
        if "ropout" in type(layer).__name__ and config.get("rate", 0):
            config["rate"] = 0.0
            return True
        return False

    return change


def wider(heads: set[str | None]) -> Callable[..., bool]:
    """Give hidden layers more units."""

    def change(layer: Any, config: dict[str, Any]) -> bool:
        if layer.name in heads or not isinstance(layer, keras.layers.Dense):
            return False
        if config.get("units", _WIDE) < _WIDE:
            config["units"] = _WIDE
            return True
        return False

    return change
