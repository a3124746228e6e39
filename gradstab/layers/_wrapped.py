"""What layers that hold other layers do with them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import keras


def as_layer(name: str, value: Any) -> Any:
    """Return a layer as it is and a list of layers as a `Sequential`, or raise `TypeError`."""
    if isinstance(value, keras.layers.Layer):
        return value
    is_list = isinstance(value, Sequence) and not isinstance(value, str) and bool(value)
    if not is_list or not all(isinstance(each, keras.layers.Layer) for each in value):
        raise TypeError(f"`{name}` must be a layer or a list of layers. Received: {name}={value!r}")
    return keras.Sequential(list(value), name=name)


def build_layer(layer: Any, shape: Any) -> None:
    """Build a layer, also one that knows how only when it is called."""
    if not layer.built:
        layer(keras.KerasTensor(tuple(shape), dtype=layer.compute_dtype))


def output_shape(layer: Any, shape: Any) -> tuple[Any, ...]:
    """Return the shape that a layer makes of another."""
    spec = layer.compute_output_spec(keras.KerasTensor(tuple(shape), dtype=layer.compute_dtype))
    return tuple(spec.shape)


def call_layer(layer: Any, x: Any, training: bool | None, mask: Any) -> Any:
    """Call a layer with what it takes of `training` and `mask`."""
    takes = inspect.signature(layer.call).parameters
    arguments: dict[str, Any] = {"training": training} if "training" in takes else {}
    if "mask" in takes and mask is not None:
        arguments["mask"] = mask
    return layer(x, **arguments)
