"""`clip="auto"` with one thing changed: a rule left out, or one of its constants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradstab
from gradstab.transforms.automatic import LimitOutliers, LimitOvershoot, LimitRateJumps

WHOLE = "auto"
SWITCHES = {
    LimitRateJumps: "limit_rate_jumps",
    LimitOutliers: "limit_outliers",
    LimitOvershoot: "limit_overshoot",
}
# A weaker and a stronger value of each constant. `factor` is an argument, the rest are fixed.
CONSTANTS: dict[type[Any], dict[str, tuple[float, float]]] = {
    LimitRateJumps: {"factor": (2.0, 16.0)},
    LimitOutliers: {"factor": (1.5, 4.0), "_GROWTH": (10.0, 1e8), "_MEMORY": (0.99, 1.0)},
    LimitOvershoot: {
        "factor": (1.5, 6.0),
        "_LEVEL": (5.0, 20.0),
        "_ACTS": (0.3, 3.0),
        "_LEAST": (-1.0, -0.1),
        "_MOST": (2.0, 15.0),
        "_FALLEN": (0.0, 1.0),
        "_SHARE": (0.0, 1.0),
        "_MEMORY": (0.0, 0.99),
    },
}


def variants(optimizer: str) -> dict[str, Callable[[Any], Any]]:
    """Return the variants that can differ for an optimizer, by name, the whole one first."""
    found: dict[str, Callable[[Any], Any]] = {WHOLE: gradstab.stabilize}
    for rule in SWITCHES:
        if rule is LimitOvershoot and optimizer != "SGD":
            continue
        found[f"without {rule.__name__}"] = _without(rule)
        for constant, value in _values(rule):
            found[f"{rule.__name__}, {constant.lstrip('_')} {value:g}"] = _with(
                rule, constant, value
            )
    return found


def _values(rule: type[Any]) -> Iterator[tuple[str, float]]:
    return ((name, value) for name, values in CONSTANTS[rule].items() for value in values)


def _without(rule: type[Any]) -> Callable[[Any], Any]:
    return lambda inner: gradstab.stabilize(inner, **{SWITCHES[rule]: False})


def _with(rule: type[Any], constant: str, value: float) -> Callable[[Any], Any]:
    """Return what stabilizes with another constant, for the rest of this process."""

    def wrap(inner: Any) -> Any:
        if constant.startswith("_"):
            setattr(rule, constant, value)
            return gradstab.stabilize(inner)
        optimizer = gradstab.stabilize(inner)
        (found,) = (each for each in optimizer.transforms if isinstance(each, rule))
        setattr(found, constant, value)
        return optimizer

    return wrap
