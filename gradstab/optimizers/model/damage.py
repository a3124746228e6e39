"""Finds weights, moving statistics and moments that are not finite, in the order of depth."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from gradstab._layers import layers_in_order
from gradstab._variables import resource, variable_path

WEIGHT = "weight"
STATISTIC = "moving statistic or other variable that is not trained"
MOMENT = "moment or other state of the optimizer"


@dataclasses.dataclass(frozen=True)
class Part:
    """A variable of the state that a run is in.

    Attributes:
        variable: The variable.
        kind: `WEIGHT`, `STATISTIC` for what a layer holds beside, or `MOMENT`.
        layer: Name of the layer that it belongs to, or `None` for the optimizer's.
    """

    variable: Any
    kind: str
    layer: str | None = None


@dataclasses.dataclass(frozen=True)
class Damage:
    """Variables that are not finite.

    Attributes:
        path: The first variable: weights before moving statistics before moments, and among them
            the first in the order of the forward pass.
        kind: Whether that is a weight, a statistic or a moment.
        layer: Name of its layer; `None` for a moment, or where no model is known.
        others: How many more variables are not finite.
    """

    path: str
    kind: str
    layer: str | None
    others: int

    def __str__(self) -> str:
        where = "" if self.layer is None else f" of layer `{self.layer}`"
        words = f"`{self.path}` ({self.kind}{where}) holds NaN or infinity"
        if self.others:
            words += f", and so {'do' if self.others > 1 else 'does'} {self.others} more"
            words += " variables" if self.others > 1 else " variable"
        return f"{words}."


def parts_of_model(model: Any) -> Iterator[Part]:
    """Yield the weights of a model, then its moving statistics, each in the order of depth."""
    layers = [layer for layer in layers_in_order(model) if layer is not model]
    layers.append(model)  # Only what belongs to no layer below is named as the model's.
    owners: dict[int, Any] = {}
    for layer in layers:
        if layer is model or not isinstance(layer, keras.Model):
            for variable in layer.weights:
                owners.setdefault(id(variable), layer)
    trained = {id(variable): variable for layer in layers for variable in layer.trainable_variables}
    for variable in trained.values():
        yield Part(variable, WEIGHT, owners[id(variable)].name)
    others = {id(variable): variable for layer in layers for variable in layer.weights}
    for place, variable in others.items():
        if place not in trained:
            yield Part(variable, STATISTIC, owners[place].name)


def first_damage(parts: Iterable[Part]) -> Damage | None:
    """Return what is not finite among parts, or `None`; one transfer from the device.

    Args:
        parts: In the order in which they are to be named.
    """
    parts = [part for part in parts if _is_float(part.variable)]
    bad = [part for part, fine in zip(parts, _finite(parts), strict=True) if not fine]
    if not bad:
        return None
    first = bad[0]
    return Damage(variable_path(first.variable), first.kind, first.layer, len(bad) - 1)


def holds_infinity(variable: Any) -> bool:
    """Whether a variable holds an infinity and no NaN: a mask, or a bound that is not used."""
    if not _is_float(variable):
        return False
    values = np.asarray(ops.convert_to_numpy(variable), "float32")
    return bool(np.isinf(values).any() and not np.isnan(values).any())


def _finite(parts: Sequence[Part]) -> np.ndarray[Any, Any]:
    flags = [
        ops.all([ops.all(ops.isfinite(value)) for value in _on_replicas(part.variable)])
        for part in parts
    ]
    return np.asarray(ops.convert_to_numpy(ops.stack(flags))) if flags else np.ones(0, "bool")


def _on_replicas(variable: Any) -> list[Any]:
    """Return the values of a variable on the replicas of this process, which may differ."""
    value = resource(variable)
    strategy = getattr(value, "distribute_strategy", None)
    if strategy is None:
        return [tf.convert_to_tensor(value)]
    return [tf.convert_to_tensor(each) for each in strategy.experimental_local_results(value)]


def _is_float(variable: Any) -> bool:
    dtype = keras.backend.standardize_dtype(variable.dtype)
    return "float" in dtype and "float8" not in dtype and 0 not in variable.shape
