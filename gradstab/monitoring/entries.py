"""Parts of a run record: events, epochs, totals over every step, samples per variable."""

from __future__ import annotations

import dataclasses
from typing import Any, Final, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]

# Events with which a run ends; a run that is resumed after one takes it back.
ENDS: Final = ("stop", "end")


@dataclasses.dataclass(frozen=True)
class Event:
    """An event of a run, or a finding.

    Attributes:
        name: Kind of the event: `skip`, `clip`, `stop`, ...
        step: Number of the step, or `None` if it belongs to no step.
        details: Further fields, such as `cause` and `variable`. A number that is not finite is kept
            as the string in the file.
    """

    name: str
    step: int | None
    details: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Epoch:
    """One completed epoch.

    Attributes:
        number: Its number, from 1.
        step: Number of its last step.
        logs: Losses and metrics of the epoch, those of validation included.
    """

    number: int
    step: int
    logs: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Totals:
    """Counts and extremes over every step of a run, sampled or not.

    Attributes:
        steps: Number of steps, skipped ones counted.
        clipped: Steps that were clipped to a bound that you chose.
        limited: Steps that a rule of `clip="auto"` limited.
        skipped: Steps that were skipped.
        limited_by: Limited steps by rule; a step may be limited by several.
        skipped_by: Skipped steps by cause.
        largest_norm: Largest finite global gradient norm before the transforms.
        largest_norm_step: Its step.
        best_loss: Smallest finite loss of a batch.
        best_loss_step: Its step.
        last_loss: Loss of the last step that was applied, NaN or infinite too.
        learning_rate: Learning rate at the end, or for a schedule the mean over the run; `None` if
            there is no single one.
        effective_rate: Mean rate of the steps after clipping and limiting. It is below
            `learning_rate` for SGD only: Adam cancels a constant factor on the gradient.
    """

    steps: int = 0
    clipped: int = 0
    limited: int = 0
    skipped: int = 0
    limited_by: dict[str, int] = dataclasses.field(default_factory=dict)
    skipped_by: dict[str, int] = dataclasses.field(default_factory=dict)
    largest_norm: float | None = None
    largest_norm_step: int | None = None
    best_loss: float | None = None
    best_loss_step: int | None = None
    last_loss: float | None = None
    learning_rate: float | None = None
    effective_rate: float | None = None

    def then(self, later: Totals) -> Totals:
        """Return the totals of a run and of its continuation together."""
        larger = later if _is_better(later.largest_norm, self.largest_norm, -1) else self
        lower = later if _is_better(later.best_loss, self.best_loss, 1) else self
        return Totals(
            steps=self.steps + later.steps,
            clipped=self.clipped + later.clipped,
            limited=self.limited + later.limited,
            skipped=self.skipped + later.skipped,
            limited_by=_sum(self.limited_by, later.limited_by),
            skipped_by=_sum(self.skipped_by, later.skipped_by),
            largest_norm=larger.largest_norm,
            largest_norm_step=larger.largest_norm_step,
            best_loss=lower.best_loss,
            best_loss_step=lower.best_loss_step,
            last_loss=self.last_loss if later.last_loss is None else later.last_loss,
            learning_rate=self._mean(self.learning_rate, later.learning_rate, later),
            effective_rate=self._mean(self.effective_rate, later.effective_rate, later),
        )

    def _mean(self, first: float | None, second: float | None, later: Totals) -> float | None:
        """Return the mean over the steps of both parts, or the one that is known."""
        if first is None or second is None or not self.steps + later.steps:
            return first if second is None else second
        return (first * self.steps + second * later.steps) / (self.steps + later.steps)


@dataclasses.dataclass(frozen=True)
class PerVariable:
    """One quantity for each variable, or for each layer, on the sampled steps.

    Attributes:
        steps: Numbers of the sampled steps, shape (samples,).
        names: Names of the variables or layers.
        values: Shape (samples, variables); NaN where the run did not have that variable.
    """

    steps: Array
    names: tuple[str, ...]
    values: Array


def _is_better(value: float | None, than: float | None, sign: int) -> bool:
    if value is None:
        return False
    return than is None or sign * value < sign * than


def _sum(first: dict[str, int], second: dict[str, int]) -> dict[str, int]:
    return {name: first.get(name, 0) + second.get(name, 0) for name in {**first, **second}}
