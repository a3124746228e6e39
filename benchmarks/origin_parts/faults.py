"""Faults that begin a step which is not finite, and what each of them is.

A fault of arithmetic is switched on before a step: `keep` is 1 until then, so that the steps before
are healthy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from origin_parts.nets import BATCH, CLASSES, HALF, NETS, build, data

# The batch before which a fault is switched on, from 0.
AT = 3


@dataclasses.dataclass
class Case:
    """One run with one fault.

    Attributes:
        kind: What has to be told.
        layer: Which layer has to be named; `None` for none.
        model: The net, not compiled.
        loss: The loss to compile it with.
        arrays: Inputs, targets and sample weights.
        before: Called before the faulty batch with the compiled model.
        entry: Row of the batch and column that have to be named, where it is the data.
    """

    kind: str
    layer: str | None
    model: Any
    arrays: tuple[Any, Any, Any]
    loss: Any = "categorical_crossentropy"
    before: Callable[[Any], None] = lambda model: None
    entry: tuple[int, tuple[int, ...]] | None = None


class Faulty(keras.layers.Layer):
    """Computes something that stops being finite, or having a gradient, once `keep` changes.

    `keep` is not the layer's: a skipped step puts back what of a layer a forward pass may change.
    """

    def __init__(self, compute: Callable[[Any, Any], Any], keep: Any, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.compute = lambda x: compute(x, ops.cast(keep.value, x.dtype))

    def call(self, x: Any) -> Any:
        """Compute it."""
        return self.compute(x)


def _masked(x: Any, keep: Any) -> Any:
    return ops.softmax(ops.where(keep > 0, x, -np.inf), -1)


def _guarded_log(x: Any, keep: Any) -> Any:
    size = (ops.abs(x) + 0.1) * keep
    return ops.where(size > 0, ops.log(size), 0.0)


# What each computes, and what `keep` becomes.
FORWARD: dict[str, tuple[Callable[[Any, Any], Any], float]] = {
    "log": (lambda x, keep: ops.log((ops.abs(x) + 0.1) * keep), 0.0),
    "division": (lambda x, keep: x / (keep * (1 + ops.abs(x))), 0.0),
    "root": (lambda x, keep: ops.sqrt((ops.abs(x) + 0.1) * keep), -1.0),
    "exp": (lambda x, keep: ops.exp(ops.tanh(x) + keep), 1e4),
    "product": (lambda x, keep: (ops.tanh(x) + 2) * keep * keep, 1e30),
    "mask": (_masked, 0.0),
}
BACKWARD: dict[str, tuple[Callable[[Any, Any], Any], float]] = {
    "root": (lambda x, keep: ops.sqrt((ops.abs(x) + 0.1) * keep), 0.0),
    "norm": (lambda x, keep: x + ops.norm(x * keep, axis=-1, keepdims=True), 0.0),
    "power": (lambda x, keep: ops.power((ops.abs(x) + 0.1) * keep, 0.5), 0.0),
    "guarded log": (_guarded_log, 0.0),
}
LOSSES: dict[str, tuple[str, Callable[[Any, Any, Any], Any], float]] = {
    "log": ("loss", lambda y, p, keep: -ops.sum(y * ops.log(p * keep), -1), 0.0),
    "division": ("loss", lambda y, p, keep: ops.mean((y - p) ** 2, -1) / keep, 0.0),
    "root": ("gradient", lambda y, p, keep: ops.sqrt(ops.mean((y - p) ** 2) * keep), 0.0),
}
# In half precision these overflow first; and numbers of half precision can't become 1e30.
_OVERFLOWS = ("exp", "product")


def _set(model: Any, layer: str, place: int, value: float) -> None:
    variable = model.get_layer(layer).trainable_variables[place]
    values = np.array(variable.numpy())
    values.flat[values.size // 2] = value
    variable.assign(values)


def _poison_moment(model: Any, layer: str) -> None:
    optimizer = model.optimizer
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    places = [v.path for v in model.trainable_variables]
    place = places.index(model.get_layer(layer).trainable_variables[0].path)
    moment = optimizer.variables[2 + 2 * place]  # After the count of steps and the rate.
    values = np.array(moment.numpy())
    values.flat[0] = np.nan
    moment.assign(values)


def of_data_and_state(net: str, seed: int) -> dict[str, Callable[[Any], Case]]:
    """Return faults that share one model, and so one trace, by name."""
    found: dict[str, Callable[[Any], Case]] = {}
    row, column = 5, tuple(size // 2 for size in data(net, seed)[0].shape[1:])

    def bad_entry(part: int, where: tuple[int, ...], value: float, kind: str) -> Any:
        def case(model: Any) -> Case:
            arrays = data(net, seed)
            arrays[part][(AT * BATCH + row, *where)] = value
            return Case(kind, None, model, arrays, entry=(row, where))

        return case

    found["inputs: NaN"] = bad_entry(0, column, np.nan, "inputs")
    found["inputs: infinity"] = bad_entry(0, column, np.inf, "inputs")
    found["targets: NaN"] = bad_entry(1, (1,), np.nan, "targets")
    found["sample weights: NaN"] = bad_entry(2, (), np.nan, "sample_weights")

    def bad_weight(layer: str, value: float) -> Any:
        return lambda model: Case(
            "weights", layer, model, data(net, seed), before=lambda m: _set(m, layer, 0, value)
        )

    for layer, value in (("first", np.nan), ("second", np.inf)):
        found[f"weights: {layer}"] = bad_weight(layer, value)

    def bad_moment(layer: str) -> Any:
        return lambda model: Case(
            "moments", layer, model, data(net, seed), before=lambda m: _poison_moment(m, layer)
        )

    for layer in ("first", "second"):
        found[f"moments: {layer}"] = bad_moment(layer)
    return found


def of_arithmetic(net: str, seed: int, half: int) -> dict[str, Callable[[], Case]]:
    """Return faults of layers and losses, and others that need a model of their own, by name.

    Args:
        net: Which net.
        seed: Draws the data.
        half: 0 or 1: which half of the layers' and losses' faults. The other half is that of the
            next net.
    """
    found: dict[str, Callable[[], Case]] = {}

    def in_layer(compute: Any, value: float, kind: str) -> Case:
        keep = keras.Variable(1.0, trainable=False)
        model = build(net, lambda x: Faulty(compute, keep, name="faulty")(x))
        return Case(kind, "faulty", model, data(net, seed), before=lambda _: keep.assign(value))

    def in_loss(compute: Any, value: float, kind: str) -> Case:
        keep = keras.Variable(1.0, trainable=False)
        return Case(
            kind, None, build(net), data(net, seed),
            loss=lambda y, p: compute(y, p, keep.value), before=lambda _: keep.assign(value),
        )  # fmt: skip

    for name, (compute, value) in FORWARD.items():
        kind, last = "layer", value
        if net == HALF and name in _OVERFLOWS:
            kind, last = "float16", min(value, 3e4)
        found[f"layer: {name}"] = lambda c=compute, v=last, k=kind: in_layer(c, v, k)
    for name, (compute, value) in BACKWARD.items():
        found[f"gradient: {name}"] = lambda c=compute, v=value: in_layer(c, v, "gradient")
    for name, (kind, compute, value) in LOSSES.items():
        found[f"loss: {name}"] = lambda c=compute, v=value, k=kind: in_loss(c, v, k)
    mine = (half + list(NETS).index(net)) % 2
    found = dict(list(found.items())[mine::2])
    found["statistics"] = lambda: _statistics(net, seed)
    found["labels"] = lambda: _labels(net, seed)
    if net == HALF:
        found["float16: inputs"] = lambda: _large_inputs(net, seed)
    return found


def _statistics(net: str, seed: int) -> Case:
    def frozen(x: Any) -> Any:
        layer = keras.layers.BatchNormalization(name="frozen")
        layer.trainable = False
        return layer(x)

    def poison(model: Any) -> None:
        mean = model.get_layer("frozen").moving_mean
        mean.assign(mean.value * np.nan)

    model = build(net, frozen)
    return Case("statistics", "frozen", model, data(net, seed), before=poison)


def _labels(net: str, seed: int) -> Case:
    x, y, weights = data(net, seed)
    labels = y.argmax(-1)
    labels[AT * BATCH + 2] = CLASSES
    loss = "sparse_categorical_crossentropy"
    return Case("labels", None, build(net), (x, labels, weights), loss=loss, entry=(2, ()))


def _large_inputs(net: str, seed: int) -> Case:
    x, y, weights = data(net, seed)
    x[AT * BATCH + 1] *= 1e6
    return Case("float16", "first", build(net), (x, y, weights))
