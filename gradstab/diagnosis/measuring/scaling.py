"""Inputs and targets at mean 0 and deviation 1, for trials that show whether scaling heals."""

from __future__ import annotations

from typing import Any, Final

import keras
import tensorflow as tf

from gradstab.diagnosis.looks.data import DataLook, InputLook
from gradstab.diagnosis.looks.structure import StructureLook
from gradstab.diagnosis.measuring.laboratory import Laboratory

# Size of features, and their mean in deviations, from which on they count as not scaled; number
# of features up to which that is asked of each.
_LARGE: Final = 2.5
_SMALL: Final = 0.1
_OFFSET: Final = 3.0
_TABLE: Final = 50
# Deviations beyond which scaled inputs are cut off.
_FAR: Final = 10.0


def _is_unscaled(look: InputLook) -> bool:
    """Whether features are so far from mean 0 and deviation 1 that scaling is worth a trial."""
    if look.largest_scale > _LARGE or look.largest_scale < _SMALL:
        return True
    # Of many features, as pixels are, some hardly ever change.
    uneven = look.largest_offset > _OFFSET or look.smallest_scale < _SMALL / 5
    return look.features <= _TABLE and uneven


def scaled_inputs(laboratory: Laboratory, data: DataLook) -> tuple[Any, Any] | None:
    """Return the data to train and to judge on with scaled inputs, `None` where they are scaled."""
    wanted = [look.kind == "float" and _is_unscaled(look) for look in data.inputs]
    if not any(wanted):
        return None
    flat = keras.tree.flatten(laboratory.train[0])
    scales = [_moments(each) if want else None for each, want in zip(flat, wanted, strict=True)]

    def scaled(part: Any) -> Any:
        new = [
            each if scale is None else _standard(each, scale)
            for each, scale in zip(keras.tree.flatten(part), scales, strict=True)
        ]
        return keras.tree.pack_sequence_as(part, new)

    train, kept = laboratory.train, laboratory.kept
    if any(e.dtype.is_integer for e, w in zip(flat, wanted, strict=True) if w):

        def floats(part: Any) -> Any:
            new = [
                tf.cast(each, tf.float32) if want else each
                for each, want in zip(keras.tree.flatten(part), wanted, strict=True)
            ]
            return keras.tree.pack_sequence_as(part, new)

        train, kept = (floats(train[0]), *train[1:]), (floats(kept[0]), *kept[1:])
    return (scaled(train[0]), *train[1:]), (scaled(kept[0]), *kept[1:])


def _standard(values: Any, scale: tuple[Any, Any]) -> Any:
    """Return values at mean 0 and deviation 1, without those of rare features that lie far out."""
    numbers = (tf.cast(values, tf.float32) - scale[0]) / scale[1]
    return tf.clip_by_value(numbers, -_FAR, _FAR)


def _moments(values: Any) -> tuple[Any, Any]:
    numbers = tf.cast(values, tf.float32)
    axes = list(range(max(len(numbers.shape) - 1, 1)))
    mean, variance = tf.nn.moments(numbers, axes)
    deviation = tf.sqrt(variance)
    # Of images one pixel may never change; features that never change stay as they are.
    return mean, tf.where(deviation > 1e-6 * (1 + tf.abs(mean)), deviation, 1.0)


def scaled_targets(
    laboratory: Laboratory, data: DataLook, structure: StructureLook
) -> tuple[Any, Any] | None:
    """Return the data with scaled targets, `None` where they are scaled or are no quantities."""
    fits = [
        look.kind == "continuous"
        and head.activation in ("linear", None)
        and not (_SMALL < look.deviation < _LARGE and abs(look.mean) < _OFFSET * look.deviation)
        for look, head in zip(data.targets, structure.heads, strict=False)
    ]
    if not any(fits):
        return None
    flat = keras.tree.flatten(laboratory.train[1])
    scales = [_moments(each) if fit else None for each, fit in zip(flat, fits, strict=True)]

    def scaled(part: Any) -> Any:
        new = [
            each if scale is None else (tf.cast(each, tf.float32) - scale[0]) / scale[1]
            for each, scale in zip(keras.tree.flatten(part), scales, strict=True)
        ]
        return keras.tree.pack_sequence_as(part, new)

    train, kept = laboratory.train, laboratory.kept
    return (train[0], scaled(train[1]), train[2]), (kept[0], scaled(kept[1]), kept[2])


def both(inputs: Any, targets: Any) -> Any:
    """Return the data with the inputs of one and the targets of the other."""
    return tuple((of_x[0], of_y[1], of_x[2]) for of_x, of_y in zip(inputs, targets, strict=True))
