"""Faults that befall a run once: in its batches, its gradients, its state or its rate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from fault_parts.nets import Backward

LENGTHS = (1, 5, 20)


@dataclasses.dataclass
class Batches:
    """All batches of a run: arrays whose first axis counts steps."""

    x: Any
    y: Any
    weight: Any


def _put(part: str, value: float) -> Callable[[Batches, slice], None]:
    def act(batches: Batches, steps: slice) -> None:
        # A part of each batch is enough, and more like what happens.
        getattr(batches, part)[steps, :3] = value

    return act


def _scale(part: str, factor: float) -> Callable[[Batches, slice], None]:
    def act(batches: Batches, steps: slice) -> None:
        getattr(batches, part)[steps] *= factor

    return act


def _huge(batches: Batches, steps: slice) -> None:
    batches.x[steps] *= 1e3
    batches.y[steps] = np.roll(batches.y[steps], 1, axis=-1)


# Done to the batches, before the run.
IN_DATA: dict[str, Callable[[Batches, slice], None]] = {
    "NaN in inputs": _put("x", np.nan),
    "Inf in inputs": _put("x", np.inf),
    "NaN in labels": _put("y", np.nan),
    "Inf in labels": _put("y", np.inf),
    "NaN in the loss": _put("weight", np.nan),
    "Inf in the loss": _put("weight", np.inf),
    "gradients x 1e10": _scale("weight", 1e10),
    "inputs x 1e3, labels shifted": _huge,
}


def _own_variables(model: Any) -> list[Any]:
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    shapes = {tuple(v.shape) for v in model.trainable_variables if len(v.shape) > 1}
    return [v for v in optimizer.variables if tuple(v.shape) in shapes]


def _assign(variables: list[Any], value: float) -> None:
    for variable in variables:
        variable.assign(np.full(variable.shape, value, "float32"))


def _statistics(model: Any) -> list[Any]:
    return [v for v in model.non_trainable_variables if "moving_" in v.path]


def _rate(factor: float) -> Callable[[Any], None]:
    def act(model: Any) -> None:
        model.optimizer.learning_rate = float(model.optimizer.learning_rate) * factor

    return act


# Done to the model before one step, and what is done before the step after it.
IN_STATE: dict[str, tuple[Callable[[Any], None], Callable[[Any], None] | None]] = {
    "weights NaN": (lambda m: _assign(m.trainable_variables[:1], np.nan), None),
    "weights Inf": (lambda m: _assign(m.trainable_variables[-2:-1], np.inf), None),
    "weights 0": (lambda m: _assign(m.trainable_variables, 0.0), None),
    "moments NaN": (lambda m: _assign(_own_variables(m)[:1], np.nan), None),
    "moments 0": (lambda m: _assign(_own_variables(m), 0.0), None),
    "statistics NaN": (lambda m: _assign(_statistics(m)[:1], np.nan), None),
    "statistics 0": (lambda m: _assign(_statistics(m), 0.0), None),
    "rate x 1e6 for a step": (_rate(1e6), _rate(1e-6)),
    "rate x 1e6 from then on": (_rate(1e6), None),
}
IN_GRADIENTS = {"one gradient NaN": np.nan, "one gradient Inf": np.inf}
ALL = (*IN_DATA, *IN_STATE, *IN_GRADIENTS)


class Strikes(keras.callbacks.Callback):
    """Does something to the model before a step, and what takes it away before another.

    Args:
        first: The step, from 0.
        last: The last step that it lasts for.
        begin: Done before the first.
        finish: Done before the step after the last, or `None`.
    """

    def __init__(
        self, first: int, last: int, begin: Callable[[Any], None], finish: Any | None
    ) -> None:
        super().__init__()
        self._step = 0
        self._acts = {first: begin} | ({} if finish is None else {last + 1: finish})

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Do what is due."""
        if self._step in self._acts:
            self._acts[self._step](self.model)
        self._step += 1


def strike(
    kind: str, first: int, length: int, batches: Batches, backward: Backward
) -> list[keras.callbacks.Callback]:
    """Have a fault befall a run; return the callbacks that do so.

    Args:
        kind: One of `ALL`.
        first: The step at which it begins.
        length: How many steps it lasts, where it can last.
        batches: All batches of the run.
        backward: What multiplies the gradient of the first layers.
    """
    if kind in IN_DATA:
        IN_DATA[kind](batches, slice(first, first + length))
        return []
    if kind in IN_STATE:
        begin, finish = IN_STATE[kind]
        return [Strikes(first, first, begin, finish)]
    value = IN_GRADIENTS[kind]
    last = first + length - 1
    return [
        Strikes(
            first,
            last,
            lambda _: backward.factor.assign(value),
            lambda _: backward.factor.assign(1.0),
        )
    ]
