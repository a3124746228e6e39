"""A reading of telemetry in five lines, for a terminal."""

from __future__ import annotations

from typing import Any

import numpy as np


def in_five_lines(reading: Any) -> str:
    """Return a reading as text: steps, gradient norm, loss, interventions, and a verdict."""
    applied = ~reading.skipped
    return "\n".join(
        [
            _steps(reading),
            f"gradient norm: {_course(reading.steps, reading.grad_norm, np.nanargmax, 'largest')}"
            f"; after the transforms {_last(reading.grad_norm_after)}",
            f"loss: {_course(reading.steps[applied], reading.loss[applied], np.nanargmin, 'best')}",
            f"clipped {_count(reading.clipped)}, "
            f"limited {_count(reading.limited)}{_counts(_by_rule(reading))}, "
            f"skipped {_count(reading.skipped)}{_counts(_by_cause(reading))}",
            f"diverged: {reading.divergence}" if reading.divergence else "not diverged",
        ]
    )


def _steps(reading: Any) -> str:
    if not len(reading.steps):
        return f"no new step; {reading.cursor:,} steps so far"
    missed = f", {reading.missed:,} before them no longer kept" if reading.missed else ""
    return f"steps {reading.steps[0]:,} to {reading.steps[-1]:,}{missed}"


def _course(steps: Any, values: Any, place_of: Any, word: str) -> str:
    values = np.where(np.isfinite(values), values, np.nan)
    if np.isnan(values).all():
        return "not known"
    place = int(place_of(values))
    return f"last {_last(values)}, {word} {values[place]:.4g} at step {steps[place]:,}"


def _last(values: Any) -> str:
    return f"{values[-1]:.4g}" if len(values) else "not known"


def _count(flags: Any) -> str:
    return f"{int(flags.sum()):,} of {len(flags):,}"


def _by_rule(reading: Any) -> dict[str, int]:
    return {name: int(flags.sum()) for name, flags in reading.limited_by.items()}


def _by_cause(reading: Any) -> dict[str, int]:
    causes = [cause for cause in reading.cause if cause is not None]
    return {cause: causes.count(cause) for cause in dict.fromkeys(causes)}


def _counts(counts: dict[str, int]) -> str:
    words = ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)
    return f" ({words})" if words else ""
