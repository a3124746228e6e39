"""The state of a run: weights, moving statistics and moments, copied, put back, looked through."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from keras import ops

from gradstab._nesting import parts, unwrapped
from gradstab.keras_hooks.optimizer_state import accumulators, trained_variables
from gradstab.optimizers.model.damage import (
    MOMENT,
    WEIGHT,
    Damage,
    Part,
    first_damage,
    holds_infinity,
    parts_of_model,
)
from gradstab.optimizers.watching.find import stabilized_optimizer

Copy: TypeAlias = dict[int, np.ndarray[Any, Any]]


class RunState:
    """All that a step changes, of one model and its optimizers.

    Variables that hold an infinity when the run begins, such as masks, are taken for constants of
    the model's own and not for damage; weights and what holds NaN are never.

    Args:
        model: The model.
        optimizers: All optimizers that it holds.
    """

    def __init__(self, model: Any, optimizers: Mapping[str, Any]) -> None:
        self._model = model
        self._optimizers = dict(optimizers)
        self._constants = {
            id(part.variable)
            for part in self._parts()
            if part.kind != WEIGHT and holds_infinity(part.variable)
        }

    def damage(self) -> Damage | None:
        """Return what is not finite, or `None`."""
        return first_damage(
            part for part in self._parts() if id(part.variable) not in self._constants
        )

    def copy(self) -> Copy:
        """Return the values of all variables, on the host."""
        return {id(v): np.array(ops.convert_to_numpy(v)) for v in self._variables()}

    def put_back(self, copy: Copy) -> None:
        """Set all variables to a copy; moments that were made since, to what they begin with."""
        made_since = []
        for variable in self._variables():
            if id(variable) in copy:
                variable.assign(copy[id(variable)])
            else:
                made_since.append(variable)
        if made_since:
            _begin_anew(made_since, map(_moments_of, self._optimizers.values()))

    def _parts(self) -> list[Part]:
        sums = {id(v) for each in self._optimizers.values() for v in sums_of_windows(each)}
        moments = [v for v in self._moments() if id(v) not in sums]
        return [*parts_of_model(self._model), *(Part(v, MOMENT) for v in moments)]

    def _moments(self) -> list[Any]:
        return [v for each in self._optimizers.values() for v in _moments_of(each).variables]

    def _variables(self) -> list[Any]:
        of_model = [*self._model.variables, *(part.variable for part in self._parts())]
        return list({id(v): v for v in [*of_model, *self._moments()]}.values())


def sums_of_windows(optimizer: Any) -> list[Any]:
    """Return the sums of gradients that an optimizer keeps until its window of micro-batches ends.

    One that is not finite is no damage: the window will be skipped as a whole.
    """
    return [
        each
        for part in parts(unwrapped(optimizer))
        if part.built and getattr(part, "gradient_accumulation_steps", None)
        for _, each in accumulators(part)
    ]


def _moments_of(optimizer: Any) -> Any:
    """Return the optimizer that keeps the moments: gradstab's has counters of its own beside."""
    ours = stabilized_optimizer(optimizer)
    return optimizer if ours is None else ours.inner_optimizer


def _begin_anew(variables: list[Any], optimizers: Any) -> None:
    """Give moments the values that they have in a fresh optimizer of the same kind."""
    wanted = {id(variable) for variable in variables}
    for optimizer in optimizers:
        if not any(id(variable) in wanted for variable in optimizer.variables):
            continue
        # Of an optimizer that can't be made anew it is not known what it begins with.
        with contextlib.suppress(Exception):
            fresh = type(optimizer).from_config(optimizer.get_config())
            fresh.build(trained_variables(optimizer))
            for variable, value in zip(optimizer.variables, fresh.variables, strict=True):
                if id(variable) in wanted:
                    variable.assign(value)
