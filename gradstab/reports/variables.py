"""Summary of each variable in a record."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from gradstab.monitoring.entries import PerVariable
from gradstab.monitoring.record import Record


@dataclasses.dataclass(frozen=True)
class Variable:
    """Summary of one variable; `None` for values that the record does not have.

    Attributes:
        name: Its name.
        grad_norm: Gradient norm at the last sampled step.
        largest_grad_norm: Largest finite gradient norm of the sampled steps.
        nonfinite_samples: Sampled steps at which its gradient norm was NaN or infinite.
        weight_norm: Norm of its weights at the last sampled step.
        first_ratio: First recorded update-to-weight ratio.
        last_ratio: Last one.
    """

    name: str
    grad_norm: float | None
    largest_grad_norm: float | None
    nonfinite_samples: int | None
    weight_norm: float | None
    first_ratio: float | None
    last_ratio: float | None


def variables(record: Record) -> tuple[Variable, ...]:
    """Return all variables of a record, in the order of its header."""
    found = {
        name: record.per_variable(name) for name in ("grad_norm", "weight_norm", "update_ratio")
    }
    names = dict.fromkeys(map(str, record.header["variables"]))
    for quantity in found.values():
        names |= dict.fromkeys(quantity.names)
    columns = {
        quantity: dict(zip(values.names, np.asarray(values.values).T, strict=True))
        for quantity, values in found.items()
    }
    return tuple(_variable(name, columns, found["grad_norm"]) for name in names)


def _variable(name: str, columns: dict[str, dict[str, Any]], sampled: PerVariable) -> Variable:
    nothing = np.zeros(0)
    norms = columns["grad_norm"].get(name, nothing)
    weights = columns["weight_norm"].get(name, nothing)
    ratios = columns["update_ratio"].get(name, nothing)
    ratios = ratios[~np.isnan(ratios)]
    finite = norms[np.isfinite(norms)]
    return Variable(
        name=name,
        grad_norm=_place(norms, -1),
        largest_grad_norm=float(finite.max()) if len(finite) else None,
        nonfinite_samples=len(norms) - len(finite) if len(sampled.steps) else None,
        weight_norm=_place(weights, -1),
        first_ratio=_place(ratios, 0),
        last_ratio=_place(ratios, -1),
    )


def _place(values: Any, place: int) -> float | None:
    return float(values[place]) if len(values) else None
