"""Weights of examples by class, as `fit` takes them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradstab._validation import check_float


def check_class_weight(class_weight: Any) -> dict[int, float] | None:
    """Return weights by class, or raise.

    Raises:
        TypeError: If it is no dictionary from classes to numbers.
        ValueError: If a weight is negative or not finite.
    """
    if class_weight is None:
        return None
    is_whole = isinstance(class_weight, dict) and all(
        isinstance(label, int | np.integer) and label >= 0 for label in class_weight
    )
    if not is_whole or not class_weight:
        raise TypeError(
            "`class_weight` must be a dictionary from classes, counted from 0, to weights. "
            f"Received: class_weight={class_weight!r}"
        )
    return {
        int(label): check_float(f"class_weight[{label}]", weight, include_minimum=True)
        for label, weight in class_weight.items()
    }


def weighted_arrays(data: tuple[Any, ...], class_weight: dict[int, float]) -> tuple[Any, ...]:
    """Return `(x, y, sample_weight)` for `(x, y)`.

    A class without a weight of its own has the weight 1.
    """
    _check(data)
    labels = np.asarray(data[1])
    labels = _classes(labels, np).astype("int64")
    known = [weight for _, weight in sorted(class_weight.items())]
    weights = np.ones(len(labels), keras.config.floatx())
    for label, weight in zip(sorted(class_weight), known, strict=True):
        weights[labels == label] = weight
    return data[0], data[1], weights


def weighted_pipeline(dataset: Any, class_weight: dict[int, float]) -> Any:
    """Return a pipeline whose batches `(x, y)` have weights."""
    _check(dataset.element_spec)
    table = np.ones(max(class_weight) + 2, keras.config.floatx())
    table[list(class_weight)] = list(class_weight.values())

    def add_weights(x: Any, y: Any, *_: Any) -> tuple[Any, Any, Any]:
        # Classes beyond those with a weight share the last entry, which is 1.
        labels = tf.cast(_classes(y, tf), tf.int64)
        last = tf.constant(len(table) - 1, tf.int64)
        labels = tf.where((labels < 0) | (labels > last), last, labels)
        return x, y, tf.gather(tf.constant(table), labels)

    weighted = dataset.map(add_weights)
    for_epoch = getattr(dataset, "for_epoch", None)
    if for_epoch is not None:
        weighted.for_epoch = lambda epoch: for_epoch(epoch).map(add_weights)
    if hasattr(dataset, "between_epochs"):
        weighted.between_epochs = dataset.between_epochs
    return weighted


def _check(data: Any) -> None:
    """Raise unless there is one target and no weight."""
    parts = len(data) if isinstance(data, tuple) else 1
    if parts < 2 or len(keras.tree.flatten(data[1])) != 1:
        raise ValueError("`class_weight` needs data with a single target `y`. Received: other data")
    if parts > 2 and data[2] is not None:
        raise ValueError(
            "`class_weight` can't be given with sample weights. Received: data (x, y, "
            "sample_weight). Multiply the sample weights by the weights of the classes"
        )


def _classes(y: Any, numbers: Any) -> Any:
    """Return the classes of targets that are classes or one-hot, by NumPy or TensorFlow."""
    shape = y.shape
    if len(shape) > 1 and shape[-1] != 1:
        return numbers.argmax(y, axis=-1)
    return numbers.reshape(y, (-1,)) if len(shape) > 1 else y
