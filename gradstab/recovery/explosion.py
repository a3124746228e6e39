"""Detects a finite explosion: a loss or gradient norm many decades beyond healthy values.

A loss that begins huge, one that is negative by nature and one that rises a thousandfold for some
steps and comes back are healthy. So a median over many steps is compared with two numbers at once:
with the best, and with the largest at the start of the run.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Final

import keras
import numpy as np

from gradstab.optimizers.model.binding import trains_by_keras_step

# Applied steps behind a median, and those that are the start of a run.
_WINDOW: Final = 20
_FIRST: Final = 5
# What counts as the least start: below it, a quantity may rise by any number of decades.
_LEAST_START: Final = 1e-3
# How often a loss below zero has to fall further, and from where on.
_FALLS: Final = 3
_BELOW: Final = 3.0

_CROSS_ENTROPIES: Final = (
    keras.losses.BinaryCrossentropy,
    keras.losses.BinaryFocalCrossentropy,
    keras.losses.CategoricalCrossentropy,
    keras.losses.CategoricalFocalCrossentropy,
    keras.losses.SparseCategoricalCrossentropy,
)


@dataclasses.dataclass
class Course:
    """How one quantity went, by its magnitude.

    Attributes:
        name: What it is, in words.
        over_start: How far beyond its largest value at the start it may be.
        over_best: How far beyond its best median.
        start: Largest magnitude of the first steps.
        best: Smallest median.
        now: Latest median.
    """

    name: str
    over_start: float
    over_best: float
    start: float = 0.0
    best: float = math.inf
    now: float = math.nan
    _seen: int = 0
    _window: list[float] = dataclasses.field(default_factory=list)

    def see(self, values: Any) -> None:
        """Take in the values of some steps, oldest first."""
        for value in np.abs(np.asarray(values, "float64")).tolist():
            if not math.isfinite(value):
                continue
            if self._seen < _FIRST:
                self._seen += 1
                self.start = max(self.start, value)
            self._window.append(value)
            if len(self._window) == _WINDOW:
                self.settle()

    def settle(self) -> None:
        """Take what was seen since the last median for a window, if it is at least half of one."""
        if len(self._window) >= _WINDOW // 2:
            self.now = float(np.median(self._window))
            self.best = min(self.best, self.now)
            self._window = []

    def forget(self) -> None:
        """Forget the latest values, and keep what is known of the start and the best."""
        self.now, self._window = math.nan, []

    def exploded(self) -> str | None:
        """Return what happened, in words, or `None`."""
        start, best = max(self.start, _LEAST_START), max(self.best, 1e-30)
        if not (self.now > self.over_start * start and self.now > self.over_best * best):
            return None
        return (
            f"The {self.name} is finite and has exploded: {self.now:.3g}, where it was "
            f"{self.best:.3g} at its best and {self.start:.3g} at most when training began."
        )


class Explosion:
    """Watches losses and gradient norms of one run.

    Args:
        loss: Name of a loss that can't be negative, or `None`.
    """

    def __init__(self, loss: str | None = None) -> None:
        self.nonnegative_loss = loss
        self.losses = Course("loss", over_start=1e4, over_best=1e6)
        self.norms = Course("gradient norm", over_start=1e6, over_best=1e8)
        self._lowest = 0.0
        self._falls = 0
        self._large = 0

    def see_steps(self, losses: Any, norms: Any) -> None:
        """Take in loss and norm of steps that were applied."""
        losses = np.asarray(losses)
        if (losses < 0).any():
            # Negative by nature: the magnitude passes zero and says little.
            self.losses.over_start = max(self.losses.over_start, 1e7)
        self.losses.see(losses)
        self.norms.see(norms)

    def see_epoch(self, loss: float, *, is_last: bool) -> str | None:
        """Take in the loss of an epoch as the logs have it; return what happened, or `None`.

        A mean over an epoch may hold one huge step, so a second one has to confirm it, or the end
        of the training.
        """
        for course in (self.losses, self.norms):
            course.settle()
        told = self.told() or self._below_zero(loss, is_last)
        if told or not math.isfinite(loss) or not math.isnan(self.losses.now):
            return told
        course = self.losses
        course.best = min(course.best, abs(loss))
        is_large = dataclasses.replace(course, now=abs(loss)).exploded()
        self._large = self._large + 1 if is_large else 0
        return is_large if is_large and (self._large > 1 or is_last) else None

    def see_first_loss(self, loss: float) -> None:
        """Take in the loss of the first step, where only the logs tell of it."""
        if math.isfinite(loss):
            self.losses.start = max(self.losses.start, abs(loss))

    def forget(self) -> None:
        """Forget the latest steps: they were taken back."""
        for course in (self.losses, self.norms):
            course.forget()
        self._large = 0

    def told(self) -> str | None:
        """Return what has exploded by now, or `None`."""
        return self.losses.exploded() or self.norms.exploded()

    def _below_zero(self, loss: float, is_last: bool) -> str | None:
        bound = -max(_BELOW, _BELOW * min(self.losses.start, 1e3))
        if self.nonnegative_loss is None or not loss < self._lowest:
            return None
        self._lowest = loss
        self._falls += 1
        if loss > bound or (self._falls < _FALLS and not is_last):
            return None
        return (
            f"The loss, {self.nonnegative_loss}, fell to {loss:.3g} and falls further. It can't be "
            "below zero where labels lie between 0 and 1: look at the labels, and at the order of "
            "the loss's arguments."
        )


def nonnegative_loss(model: Any) -> str | None:
    """Return the name of a model's loss if it is a cross-entropy and nothing else is added."""
    if type(model).compute_loss is not keras.Model.compute_loss or "compute_loss" in vars(model):
        return None
    if not trains_by_keras_step(model):
        return None
    losses = keras.tree.flatten(getattr(model, "loss", None))
    if model.losses or len(losses) != 1:
        return None
    loss = losses[0]
    if isinstance(loss, str):
        try:
            loss = keras.losses.get(loss)
        except ValueError:
            return None
    functions = {
        keras.losses.binary_crossentropy,
        keras.losses.binary_focal_crossentropy,
        keras.losses.categorical_crossentropy,
        keras.losses.categorical_focal_crossentropy,
        keras.losses.sparse_categorical_crossentropy,
    }
    if isinstance(loss, _CROSS_ENTROPIES):
        return str(loss.name)
    return str(loss.__name__) if loss in functions else None
