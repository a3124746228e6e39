"""Layers inside of layers: how they are built, and what fits what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras


def build_inside(layer: Any, shape: Sequence[Any]) -> tuple[Any, ...]:
    """Build a layer for inputs of a shape, and return the shape of what it puts out.

    A layer made of others often has no `build` and no `compute_output_shape` of its own, and when
    it is loaded Keras takes it for built before those inside are. Called on a symbolic tensor, all
    of them are built, and Keras finds the shape.
    """
    return tuple(layer(keras.KerasTensor(tuple(shape), dtype=layer.compute_dtype)).shape)


def output_shape(layer: Any, shape: Sequence[Any]) -> tuple[Any, ...]:
    """Return the shape of what a layer puts out, built or not."""
    tensor = keras.KerasTensor(tuple(shape), dtype=layer.compute_dtype)
    return tuple(layer.compute_output_spec(tensor).shape)


def strides_between(shortcut: tuple[Any, ...], branch: tuple[Any, ...]) -> tuple[int, ...] | None:
    """Return the steps between the positions to keep, or None if none lead to the branch."""
    if len(shortcut) != len(branch) or None in (shortcut[-1], branch[-1]):
        return None
    strides = []
    for size, wanted in zip(shortcut[1:-1], branch[1:-1], strict=True):
        if size is None or wanted is None or size == wanted:
            strides.append(1)
            continue
        stride = -(-size // wanted)
        if -(-size // stride) != wanted:
            return None
        strides.append(stride)
    return tuple(strides)
