"""Building layers inside of layers, also those that know how only when they are called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras


def build_inside(layer: Any, shape: Sequence[Any]) -> tuple[Any, ...]:
    """Build a layer for inputs of a shape, and return the shape of what it puts out.

    A layer made of others often has no `build` and no `compute_output_shape` of its own. Called on
    a symbolic tensor, Keras finds out both.
    """
    tensor = keras.KerasTensor(tuple(shape), dtype=layer.compute_dtype)
    output = layer.compute_output_spec(tensor) if layer.built else layer(tensor)
    return tuple(output.shape)


def output_shape(layer: Any, shape: Sequence[Any]) -> tuple[Any, ...]:
    """Return the shape of what a layer puts out, built or not."""
    tensor = keras.KerasTensor(tuple(shape), dtype=layer.compute_dtype)
    return tuple(layer.compute_output_spec(tensor).shape)
