"""Copies of all that a step changes, on the device: a ring of them.

A copy costs next to nothing when it is taken: reading a variable of TensorFlow's shares its buffer,
and whatever writes the variable next makes a new one. So a ring of K copies holds K times the state
beside the state itself, once the state has moved on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf

from gradstab.optimizers.model.damage import MOMENT, parts_of_model
from gradstab.optimizers.watching.find import stabilized_optimizer
from gradstab.recovery.state import sums_of_windows

# Copies that a ring holds: the newest may hold what is not seen yet, the others go further back.
COPIES: Final = 3


@dataclasses.dataclass(frozen=True)
class Place:
    """One TensorFlow variable of the state, on one replica.

    Attributes:
        variable: The variable.
        path: Path of the Keras variable that it belongs to.
        kind: `WEIGHT`, `STATISTIC` or `MOMENT`; `None` for counters, seeds, bounds, metrics and the
            like, of which some may be infinite.
    """

    variable: Any
    path: str
    kind: str | None

    @property
    def is_judged(self) -> bool:
        """Whether it has to be finite."""
        dtype, shape = self.variable.dtype, self.variable.shape
        is_float = bool(dtype.is_floating) and dtype.size >= 2 and 0 not in shape
        return is_float and self.kind is not None


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A copy of all that a step changes.

    Attributes:
        step: Steps of this run when it was taken, dropped ones counted.
        epoch: The epoch in which it was taken.
        values: One tensor for each variable of the state.
        factor: What the rate was multiplied by then.
    """

    step: int
    epoch: int
    values: Sequence[Any]
    factor: float = 1.0


class State:
    """All variables that a step changes, of a model and its optimizers, read in one call.

    Telemetry is left out, since it tells what happened whether or not that is taken back.

    Args:
        model: A built model.
        optimizers: All optimizers that it holds, by name.
    """

    def __init__(self, model: Any, optimizers: Mapping[str, Any]) -> None:
        self._model = model
        # Keras makes the variables of metrics in the first step only: they come last.
        self._metrics = [*model.metrics_variables]
        self.places = [*_places(model, optimizers), *_plain_places(self._metrics)]
        self.judged = [place for place in self.places if place.is_judged]
        self._read = tf.function(self._values_and_norms, autograph=False)

    @property
    def is_complete(self) -> bool:
        """Whether no metric was made since."""
        return len(self._metrics) == len(self._model.metrics_variables)

    def read(self) -> tuple[list[Any], np.ndarray[Any, Any]]:
        """Return the values of all variables, and half the squared norm of each that is judged.

        A variable with NaN or an infinity has no finite norm.
        """
        values, norms = self._read()
        return values, norms.numpy()

    def put_back(self, values: Sequence[Any]) -> None:
        """Set all variables to values that were read, but for metrics that were not there then."""
        for place, value in zip(self.places, values, strict=False):
            place.variable.assign(value)

    def _values_and_norms(self) -> tuple[list[Any], Any]:
        values = [tf.identity(place.variable) for place in self.places]
        norms = [
            # One pass without anything in between, as no reduction of magnitudes is.
            tf.nn.l2_loss(tf.cast(value, tf.float32))
            for place, value in zip(self.places, values, strict=True)
            if place.is_judged
        ]
        return values, tf.stack(norms) if norms else tf.zeros((0,))


class Ring:
    """The latest snapshots, oldest first, and the one with which training began.

    Args:
        copies: How many are kept beside that one.
    """

    def __init__(self, copies: int = COPIES) -> None:
        self._copies = copies
        self._first: Snapshot | None = None
        self._latest: list[Snapshot] = []

    def begin(self, snapshot: Snapshot) -> None:
        """Keep the state in which training begins; there is no other."""
        self._first, self._latest = snapshot, []

    def add(self, snapshot: Snapshot) -> None:
        """Keep a snapshot, and let go of the oldest where there is no more room."""
        self._latest = [*self._latest, snapshot][-self._copies :]

    @property
    def first(self) -> Snapshot | None:
        """The state in which training began, or `None` if that was no state to go back to."""
        return self._first

    def get(self, back: int) -> Snapshot | None:
        """Return the newest snapshot, or one so many before it; `None` if there is none so old."""
        place = len(self._latest) - 1 - back
        return self._latest[place] if place >= 0 else None

    def drop_after(self, step: int) -> None:
        """Let go of what was taken after a step, since it was taken back."""
        self._latest = [snapshot for snapshot in self._latest if snapshot.step <= step]


def _places(model: Any, optimizers: Mapping[str, Any]) -> list[Place]:
    kinds = {id(part.variable): part.kind for part in parts_of_model(model)}
    found = {id(variable): variable for variable in model.variables}
    for optimizer in optimizers.values():
        ours = stabilized_optimizer(optimizer)
        told = set() if ours is None else {id(each) for each in ours.telemetry.variables}
        own = {id(v): v for v in optimizer.variables if id(v) not in told}
        shapes = {tuple(v.shape) for v in model.trainable_variables if len(v.shape)}
        sums = {id(variable) for variable in sums_of_windows(optimizer)}
        for place, variable in own.items():
            if tuple(variable.shape) in shapes and place not in sums:
                kinds.setdefault(place, MOMENT)
        found |= own
    for variable in model.metrics_variables:
        found.pop(id(variable), None)
    return [
        dataclasses.replace(place, kind=kinds.get(id(variable)))
        for variable in found.values()
        for place in _plain_places([variable])
    ]


def _plain_places(variables: Sequence[Any]) -> list[Place]:
    return [
        Place(component, str(getattr(variable, "path", variable.name)), None)
        for variable in variables
        for component in _components(variable)
    ]


def _components(variable: Any) -> list[Any]:
    """Return the variables behind one on the replicas of this process, which may differ."""
    value = variable.value if isinstance(variable, keras.Variable) else variable
    strategy = getattr(value, "distribute_strategy", None)
    if strategy is None or strategy.num_replicas_in_sync == 1:
        return [value]
    return list(strategy.experimental_local_results(value))
