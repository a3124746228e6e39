"""Inputs on a scale that layers can take."""

from __future__ import annotations

import functools
from typing import Any, ClassVar, final

import keras
import numpy as np

from gradstab.repairs.clone import input_name
from gradstab.repairs.draft import Draft
from gradstab.repairs.prescriptions.base import Change, Prescription, changed

# Layers that bring inputs to a scale themselves, or take no scale at all.
_SCALES = (
    keras.layers.Normalization,
    keras.layers.Rescaling,
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.Embedding,
    keras.layers.TextVectorization,
)
# Features whose largest deviation is within these need no scaling.
_LARGEST, _SMALLEST = 5.0, 0.05
# A feature that is further from zero than this many deviations hides its differences.
_OFFSET = 10.0


@final
class ScaleInputs(Prescription):
    """A `Normalization` layer behind each input whose features are far from unit scale."""

    name = "scale the inputs by a layer"
    heals = ("unscaled-input",)
    helps = (
        "saturated-units",
        "exploding-signal",
        "vanishing-signal",
        "nonfinite-forward",
        "collapsed-output",
        "learning-rate-too-high",
    )

    def write(self, draft: Draft) -> list[Change]:
        """Put the layers in; their numbers come from the data."""
        arrays = _by_input(draft)
        changes = []
        for name, array in arrays.items():
            if name in draft.at_input or _is_scaled(draft, array, len(arrays)):
                continue
            mean, variance = _moments(array)
            draft.at_input[name] = [functools.partial(_normalization, mean, variance)]
            axis = "" if np.ndim(mean) else "axis=None, "
            changes.append(
                Change(
                    "",
                    f"keras.layers.Normalization({axis}mean={_short(mean)}, "
                    f"variance={_short(variance)})  # behind the input {name}: means and variances "
                    "of the training data",
                )
            )
        return changes


@final
class MatchValueRange(Prescription):
    """The range of values that an augmentation layer takes for granted, as the data has it."""

    name = "augment in the range of the data"
    heals = ("unscaled-input",)
    ranges: ClassVar[tuple[tuple[float, float], ...]] = ((0.0, 1.0), (0.0, 255.0))

    def write(self, draft: Draft) -> list[Change]:
        """Set `value_range` of layers that have one and stand on another range than the data."""
        arrays = list(_by_input(draft).values())
        if len(arrays) != 1 or np.ndim(arrays[0]) < 3:
            return []
        lowest, highest = float(np.nanmin(arrays[0])), float(np.nanmax(arrays[0]))
        if lowest < 0 or highest > self.ranges[1][1]:
            return []
        fits = self.ranges[0] if highest <= self.ranges[0][1] else self.ranges[1]
        changes = []
        for layer in draft.layers:
            value = draft.config(layer).get("value_range")
            if value is not None and tuple(map(float, value)) != fits:
                changes.append(changed(draft, layer, value_range=fits))
        return changes


def _by_input(draft: Draft) -> dict[str, Any]:
    if not draft.is_editable:
        return {}
    if hasattr(draft.x, "shape"):
        return {input_name(draft.model): np.asarray(draft.x)}
    names = [tensor.name for tensor in keras.tree.flatten(draft.model.input)]
    if isinstance(draft.x, dict):
        return {name: np.asarray(draft.x[name]) for name in names if name in draft.x}
    arrays = keras.tree.flatten(draft.x)
    return {name: np.asarray(array) for name, array in zip(names, arrays, strict=False)}


def _is_scaled(draft: Draft, array: Any, count: int) -> bool:
    if not np.issubdtype(array.dtype, np.number) or array.ndim < 2:
        return True
    if count == 1 and draft.top and isinstance(draft.top[0], _SCALES):
        return True
    if any(isinstance(each, keras.layers.Embedding) for each in draft.layers) and (
        np.issubdtype(array.dtype, np.integer) or count > 1
    ):
        return True
    mean, variance = _spread(array)
    deviation = np.sqrt(variance)
    varying = np.atleast_1d(deviation)[np.atleast_1d(deviation) > 0]
    if varying.size == 0:
        return True
    offset = np.max(np.abs(mean) / np.maximum(deviation, 1e-12) * (deviation > 0))
    is_large = max(float(varying.max()), float(np.nanmax(np.abs(array))) / 10) > _LARGEST
    return not (is_large or varying.max() < _SMALLEST or offset > _OFFSET)


def _moments(array: Any) -> tuple[Any, Any]:
    """Return mean and variance to scale by: those of what never changes leave it as it is."""
    mean, variance = _spread(array)
    if np.ndim(mean) == 0:
        return float(mean), max(float(variance), 1e-12)
    return np.nan_to_num(mean).tolist(), np.where(variance > 0, variance, 1.0).tolist()


def _spread(array: Any) -> tuple[Any, Any]:
    """Return mean and variance: of each feature, or of all values of an image."""
    array = np.asarray(array, "float64")
    array = np.where(np.isfinite(array), array, np.nan)
    axis = None if array.ndim >= 4 else tuple(range(array.ndim - 1))
    return np.nanmean(array, axis), np.nanvar(array, axis)


def _normalization(mean: Any, variance: Any) -> Any:
    axis = -1 if np.ndim(mean) else None
    return keras.layers.Normalization(axis=axis, mean=mean, variance=variance)


def _short(numbers: Any) -> str:
    if np.ndim(numbers) == 0:
        return f"{numbers:.4g}"
    shown = ", ".join(f"{number:.4g}" for number in list(numbers)[:4])
    return f"[{shown}{', ...' if len(numbers) > 4 else ''}]"
