"""One warning where rules limited most steps of an epoch: what they saw, and what would help."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from gradstab.optimizers.telemetry.reading import Reading

# Fewer steps than these are no epoch to judge by.
_FEWEST: Final = 16
_ARGUMENTS: Final = {
    "rate_jump": "limit_rate_jumps",
    "outlier": "limit_outliers",
    "overshoot": "limit_overshoot",
}
# A loss beyond which inputs or targets are taken for unscaled.
_LARGE_LOSS: Final = 100.0


def told_of_limits(reading: Reading, rate: float | None, momentum: float | None) -> str | None:
    """Return what to warn of, or `None` if at most half of the steps were limited or skipped.

    Where skips alone are that many, there is a budget that tells them.

    Args:
        reading: Of the steps of an epoch.
        rate: Learning rate at their end, `None` where there is no single one.
        momentum: Momentum of SGD, `None` with another optimizer.
    """
    steps = len(reading.steps)
    touched = reading.limited | reading.skipped
    if steps < _FEWEST or touched.sum() * 2 <= steps:
        return None
    counts: dict[str, Any] = {name: flags.sum() for name, flags in reading.limited_by.items()}
    causes = [cause for cause in reading.cause if cause is not None]
    counts |= {f"skipped: {cause}": causes.count(cause) for cause in dict.fromkeys(causes)}
    rule = max(counts, key=lambda name: counts[name])
    parts = [
        f"{touched.sum()} of the last {steps} steps were limited or skipped, {counts[rule]} of "
        f"them by one rule ({rule})."
    ]
    if rule not in _ARGUMENTS:
        return None  # Skips have a budget, and verdicts of their own.
    flags = reading.limited_by[rule]
    parts += [_seen(rule, reading, flags, rate, momentum), _effective(reading, flags, rate)]
    loss = float(np.nanmedian(reading.loss)) if np.isfinite(reading.loss).any() else 0.0
    if loss > _LARGE_LOSS:
        parts.append(
            f"The loss is about {loss:.2g}: of a squared error that is an error of "
            f"{np.sqrt(loss):.2g}. Scale inputs and targets to about 1 first."
        )
    parts.append(f"`stabilize(..., {_ARGUMENTS[rule]}=False)` leaves the rule out.")
    return " ".join(part for part in parts if part)


def _seen(
    rule: str, reading: Reading, flags: Any, rate: float | None, momentum: float | None
) -> str:
    """Return what the rule saw, in the middle of the steps that it limited."""
    norms, losses = reading.grad_norm[flags], reading.loss[flags]
    if rule == "rate_jump":
        return "The learning rate jumped again and again by more than the rule's factor."
    if rule == "outlier":
        return f"Their gradients, of norm {np.median(norms):.2g}, were far longer than all before."
    if rate is None or momentum is None:
        return ""
    falls = rate * norms.astype("float64") ** 2 / ((1 - momentum) * np.maximum(losses, 1e-30))
    return f"These were predicted to undo the loss {np.median(falls):.2g} times over."


def _effective(reading: Reading, flags: Any, rate: float | None) -> str:
    """Return at which rate steps were taken in effect, and that it would do."""
    shares = reading.grad_norm_after[flags] / np.maximum(reading.grad_norm[flags], 1e-30)
    share = float(np.median(shares))
    if rate is None or not 0 < share < 1:
        return ""
    return (
        f"In effect the learning rate was about {rate * share:.2g} instead of {rate:.2g}, which is "
        "likely too high for the scale of inputs or targets: try that rate."
    )
