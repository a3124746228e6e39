"""Sorts data, in all forms that `fit` takes, into training and validation data."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from gradstab.training.generated import is_generated


def sort_data(
    train_data: Any, y: Any, validation_data: Any, validation_split: float
) -> tuple[Any, Any]:
    """Return training and validation data, each with its targets in one; `None` for none.

    Args:
        train_data: Data with its targets, or inputs alone.
        y: The targets of `train_data`; or validation data, where `train_data` holds its targets.
        validation_data: The same for validation.
        validation_split: The share of the arrays, from their end, to validate on.

    Raises:
        TypeError: If targets are given twice.
        ValueError: If the split is not below 1, leaves nothing, or is not of arrays.
    """
    if y is not None and _is_whole(train_data):
        if validation_data is not None or not _is_whole(y):
            raise TypeError(
                "`y` must be left out where `train_data` holds the targets. Received: train_data "
                f"of type {type(train_data).__name__} and y of type {type(y).__name__}. Several "
                "inputs go in a list or a dictionary"
            )
        y, validation_data = None, y
    if not _is_whole(train_data):
        train_data = (train_data,) if y is None else (train_data, y)
    if validation_data is not None and not _is_whole(validation_data):
        validation_data = (validation_data,)
    if not validation_split:
        return train_data, validation_data
    if validation_data is not None:
        raise ValueError(
            "`validation_split` can't be given with `validation_data`. Received: "
            f"validation_split={validation_split} and both. Leave one of them out"
        )
    return _split(train_data, validation_split)


def check_passes(data: Any, epochs: int, steps_per_epoch: int | None) -> None:
    """Raise if a generator, which can be gone through once, is to serve several epochs whole.

    Raises:
        ValueError: If so.
    """
    once = is_generated(data) and not isinstance(data, keras.utils.PyDataset)
    if once and epochs > 1 and steps_per_epoch is None:
        raise ValueError(
            "`train_data` is a generator, which can be gone through once. Received: "
            f"{epochs} epochs to train. Pass `steps_per_epoch`, or a PyDataset"
        )


def _is_whole(data: Any) -> bool:
    """Whether data comes with its targets, or says by itself that it has none."""
    return isinstance(data, tuple | tf.data.Dataset) or is_generated(data)


def _split(data: Any, share: float) -> tuple[Any, Any]:
    given = f"Received: validation_split={share}"
    if not isinstance(share, int | float) or not 0 < share < 1:
        raise ValueError(f"`validation_split` must be between 0 and 1. {given}")
    if not isinstance(data, tuple):
        raise ValueError(
            f"`validation_split` needs arrays. {given} with a {type(data).__name__}. Pass "
            "`validation_data`"
        )
    arrays = [leaf for leaf in keras.tree.flatten(data) if hasattr(leaf, "shape")]
    length = int(arrays[0].shape[0]) if arrays else 0
    place = math.floor(length * (1 - share))
    if place in (0, length):
        raise ValueError(
            f"`validation_split` must leave examples on both sides. {given} of {length} examples"
        )

    def part(start: int, end: int) -> Any:
        return keras.tree.map_structure(
            lambda leaf: leaf[start:end] if hasattr(leaf, "shape") else leaf, data
        )

    return part(0, place), part(place, length)
