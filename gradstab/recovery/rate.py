"""Multiplies the learning rates of a run, numbers and schedules, by a factor, and undoes it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from gradstab.keras_hooks.optimizer_state import learning_rate_source
from gradstab.schedules.compose import Adjustable


class RateCut:
    """The factor by which a run's rates are multiplied.

    A rate that is a number is set, and so is the factor of a schedule that is `Adjustable`. Before
    another schedule stands an `Adjustable` for the rest of the run, so that steps have to be traced
    anew. A function as a rate is left alone.

    Args:
        optimizers: All optimizers of a model.

    Attributes:
        factor: What the rates are multiplied by now.
    """

    def __init__(self, optimizers: Iterable[Any]) -> None:
        self._parts = [_Part(each) for optimizer in optimizers for each in _innermost(optimizer)]
        self.factor = 1.0

    @property
    def can_cut(self) -> bool:
        """Whether any rate can be cut."""
        return any(part.can_set or part.is_scheduled for part in self._parts)

    def whole(self) -> list[float]:
        """Return the rates as they would be without the cut; NaN for those of schedules."""
        return [part.read() / self.factor for part in self._parts]

    def set(self, factor: float, whole: Sequence[float] | None = None) -> bool:
        """Multiply the rates by another factor; return whether steps have to be traced anew.

        Args:
            factor: The factor from now on.
            whole: The rates that it multiplies; by default as they are.
        """
        rates = self.whole() if whole is None else whole
        retrace = False
        for part, rate in zip(self._parts, rates, strict=True):
            if part.can_set:
                part.write(rate * factor)
            elif part.is_scheduled:
                retrace |= part.multiply(factor)
        self.factor = factor
        return retrace

    def set_after_restoring(self, factor: float, before: Sequence[float], then: float) -> bool:
        """Set the rates after a state was put back: no higher than they were before that.

        Args:
            factor: The factor from now on.
            before: What `whole` returned before.
            then: The factor when the state was copied.
        """
        restored = [part.read() / then for part in self._parts]
        lower = [
            old if math.isfinite(old) and 0 < old < new else new
            for old, new in zip(before, restored, strict=True)
        ]
        return self.set(factor, lower)

    def resume(self, factor: float) -> bool:
        """Take rates that are numbers for cut already; return whether to trace steps anew.

        Args:
            factor: What they were multiplied by when the run was left; schedules are whole again.
        """
        retrace = False
        for part in self._parts:
            part.last = part.read()
            if part.is_scheduled:
                retrace |= part.multiply(factor)
        self.factor = factor
        return retrace

    def keep(self) -> None:
        """Cut a rate that somebody raised meanwhile: who raises it means the whole rate."""
        if self.factor == 1.0:
            return
        for part in self._parts:
            if part.can_set and part.read() > part.last * (1 + 1e-6):
                part.write(part.read() * self.factor)

    def release(self) -> None:
        """Take the cut back, and give the optimizers the schedules that they had."""
        self.keep()
        self.set(1.0)
        for part in self._parts:
            part.release()


class _Part:
    """One optimizer with a rate of its own."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._schedule: Any = None
        self._stand_in: Adjustable | None = None
        self.last = math.nan

    @property
    def _source(self) -> Any:
        return learning_rate_source(self._optimizer)

    @property
    def can_set(self) -> bool:
        """Whether the rate is a number, or a schedule that is adjustable by a person's choice."""
        source = self._source
        return isinstance(source, keras.Variable) or (
            isinstance(source, Adjustable) and source is not self._stand_in
        )

    @property
    def is_scheduled(self) -> bool:
        """Whether it is another schedule."""
        return not self.can_set and isinstance(
            self._source, keras.optimizers.schedules.LearningRateSchedule
        )

    def read(self) -> float:
        """Return what can be set, NaN if nothing can."""
        if not self.can_set:
            return math.nan
        source = self._source
        value = source.factor_variable if isinstance(source, Adjustable) else source
        return float(np.asarray(ops.convert_to_numpy(value)))

    def write(self, value: float) -> None:
        """Set it."""
        if isinstance(self._source, Adjustable):
            self._source.factor = value
        else:
            self._optimizer.learning_rate = value
        self.last = self.read()

    def multiply(self, factor: float) -> bool:
        """Multiply a schedule; return whether that takes another trace."""
        is_new = self._stand_in is None and factor != 1.0
        if is_new:
            self._schedule = self._source
            self._stand_in = Adjustable(self._schedule)
            self._optimizer.learning_rate = self._stand_in
        if self._stand_in is not None:
            self._stand_in.factor = factor
        return is_new

    def release(self) -> None:
        """Give back the schedule that was there."""
        if self._schedule is not None:
            self._optimizer.learning_rate = self._schedule
            self._schedule = self._stand_in = None


def _innermost(optimizer: Any) -> list[Any]:
    """Return the optimizers that have rates, whatever stands round them."""
    inner = getattr(optimizer, "inner_optimizer", None)
    if inner is not None:
        return _innermost(inner)
    parts = getattr(optimizer, "optimizers", None)
    return [each for part in parts for each in _innermost(part)] if parts else [optimizer]
