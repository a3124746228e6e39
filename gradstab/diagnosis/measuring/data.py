"""Fills the look at the data."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import keras
import numpy as np

from gradstab._layers import layers_in_order
from gradstab.diagnosis.looks import data as looks
from gradstab.diagnosis.looks import relations
from gradstab.diagnosis.looks.data import DataLook, TargetLook
from gradstab.diagnosis.measuring.sample import Sample

# Layers that look numbers up, for which a scale means nothing.
_LOOKUPS: Final = ("Embedding", "Lookup", "CategoryEncoding", "Hashing", "Discretization")
# Features beyond which rows are not compared with each other.
_WIDE: Final = 20_000


def look_at_data(model: Any, sample: Sample, epochs: int | None, seed: int) -> DataLook:
    """Measure inputs and targets, and how they go together."""
    has_lookup = any(
        word in type(layer).__name__ for layer in layers_in_order(model) for word in _LOOKUPS
    )
    inputs = tuple(
        looks.look_at_input(name, values, is_index=has_lookup and _is_whole(values))
        for name, values in _named(sample.all_x, "x")
    )
    points = _points(sample)
    few = [] if sample.y is None else keras.tree.flatten(sample.y)
    targets = tuple(
        _target(name, values, rows, points, seed)
        for (name, values), rows in zip(_named(sample.all_y, "y"), few, strict=True)
    )
    repeated = 0.0
    if len(inputs) == len(targets) == 1 and inputs[0].kind != "text":
        repeated = relations.contradictions(keras.tree.flatten(sample.x)[0], few[0])
    return DataLook(
        rows=sample.total_rows,
        inputs=inputs,
        targets=targets,
        batch_size=sample.batch_size,
        steps_per_epoch=sample.steps_per_epoch,
        epochs=epochs,
        contradictions=repeated,
        problems=sample.problems,
    )


def _named(part: Any, default: str) -> list[tuple[str, Any]]:
    if part is None:
        return []
    return [
        (".".join(map(str, path)) or default, values)
        for path, values in keras.tree.flatten_with_path(part)
    ]


def _is_whole(values: Any) -> bool:
    if values.dtype.kind in "iub":
        return True
    few = values[:256]
    return values.dtype.kind == "f" and bool((np.round(few) == few).all())


def _target(name: str, values: Any, few: Any, points: Any, seed: int) -> TargetLook:
    target = looks.look_at_target(name, values)
    if points is None or target.kind not in ("binary", "classes", "one-hot"):
        return target
    labels = few.argmax(-1) if target.kind == "one-hot" else few.reshape(len(few), -1)[:, 0]
    if labels.ndim > 1 or (target.kind != "one-hot" and few.size != len(few)):
        return target
    agree = relations.agreement_of_neighbours(points, labels, seed)
    return dataclasses.replace(target, neighbours_agree=agree)


def _points(sample: Sample) -> Any:
    """Return the rows as points in which distances mean something, or `None`."""
    arrays = keras.tree.flatten(sample.x)
    flat = [each.reshape(len(each), -1) for each in arrays if each.dtype.kind in "fiub"]
    if not flat:
        return None
    joined = np.concatenate(flat, 1).astype("float32")
    if joined.shape[1] > _WIDE or not np.isfinite(joined).all():
        return None
    if joined.shape[1] > 100 or any(each.ndim > 2 for each in arrays):
        return joined / max(float(joined.std()), 1e-9)  # pixels and the like share one scale
    return (joined - joined.mean(0)) / np.maximum(joined.std(0), 1e-6)
