"""The verdict on a run, in a sentence: the page begins with it, and `fit` ends with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from gradstab.monitoring.entries import Totals
from gradstab.reports._words import counted, number, share

# A run of which so few steps were touched is healthy all the same.
_FEW: Final = 0.01
# A loss that falls by less than this share has stayed where it was; by less than the other, nearly.
_LEAST_FALL, _FAIR_FALL = 0.01, 0.05
LOST_AGAIN: Final = "Lost again"
NO_PROGRESS: Final = "No progress"


def verdict(
    totals: Totals,
    losses: Sequence[float] = (),
    diverged: str | None = None,
    interrupted: str | None = None,
) -> str:
    """Return a sentence or two.

    Args:
        totals: Counts and extremes over every step.
        losses: The loss of each epoch, oldest first.
        diverged: Why the run has diverged, of which the first sentence is told, or `None`.
        interrupted: Name of the exception that ended it, or `None`.

    >>> verdict(Totals(steps=570), [2.3, 0.4])
    'Healthy: nothing clipped, nothing skipped.'
    >>> verdict(Totals(steps=57, clipped=57), [2.3, 0.4])
    'Held back: 57 of 57 steps clipped. A bound that acts on most steps is a smaller learning rate.'
    """
    if diverged is not None:
        return f"Diverged: {diverged.partition('. ')[0].rstrip('.')}."
    if interrupted is not None:
        told = verdict(totals, losses)
        return f"Interrupted by {interrupted}. Up to then: {told[0].lower()}{told[1:]}"
    if not totals.steps:
        return "Empty: no step is recorded."
    if totals.skipped == totals.steps:
        return f"Nothing applied: all {totals.steps:,} steps were skipped{_causes(totals)}."
    # NaN at every step may mean that nobody told the loss; the epochs know.
    is_told = totals.best_loss is not None
    if is_told and totals.last_loss is not None and not math.isfinite(totals.last_loss):
        return "Lost: the loss of the last step is not finite."
    if losses and not math.isfinite(losses[-1]):
        return "Lost: the loss of the last epoch is not finite."
    if totals.largest_norm == 0:
        return "Nothing learned: the gradient was exactly zero at every step."
    touched = _touched(totals)
    course = course_of(losses)
    told = ", ".join(touched) or "nothing clipped, nothing skipped"
    if not touched and not course:
        return f"Healthy: {told}."
    if max(totals.clipped, totals.limited) * 2 > totals.steps:
        which = "bound" if totals.clipped >= totals.limited else "limit"
        more = f"A {which} that acts on most steps is a smaller learning rate"
        return f"Held back: {told}. {more}{f', and {course[1]}' if course else ''}."
    if course:
        return f"{course[0]}: {course[1]}; {told}."
    is_healthy = totals.clipped + totals.limited + totals.skipped <= _FEW * totals.steps
    return f"{'Healthy' if is_healthy else 'Protected'}: {told}."


def closing_line(
    totals: Totals,
    losses: Sequence[float],
    diverged: str | None = None,
    interrupted: str | None = None,
) -> str:
    """Return the counts of a run and its verdict on one line."""
    parts = [
        counted(totals.steps, "step"),
        f"{totals.clipped:,} clipped",
        f"{totals.limited:,} limited",
        f"{totals.skipped:,} skipped",
    ]
    rate = rate_words(totals)
    if rate is not None:
        parts.append(rate)
    return f"{', '.join(parts)}. {verdict(totals, losses, diverged, interrupted)}"


def rate_words(totals: Totals) -> str | None:
    """Return the effective rate in words, beside the one that was set where they differ."""
    rate, effective = totals.learning_rate, totals.effective_rate
    if rate is None or effective is None:
        return None
    words = f"effective rate {number(effective, 3)}"
    return words if effective >= 0.995 * rate else f"{words} of {number(rate, 3)}"


def _touched(totals: Totals) -> list[str]:
    """Return which steps were not applied as they came, in words."""
    kinds = (("clipped", totals.clipped, ""), ("limited", totals.limited, _rules(totals)),
             ("skipped", totals.skipped, _causes(totals)))  # fmt: skip
    found = [(word, count, more) for word, count, more in kinds if count]
    return [
        f"{count:,} of {totals.steps:,} steps {word}{more}"
        if not place
        else f"{count:,} {word}{more}"
        for place, (word, count, more) in enumerate(found)
    ]


def _causes(totals: Totals) -> str:
    return _listed(totals.skipped_by)


def _rules(totals: Totals) -> str:
    return _listed(totals.limited_by)


def _listed(counts: dict[str, int]) -> str:
    words = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    return f" ({words})" if words else ""


def course_of(losses: Sequence[float]) -> tuple[str, str] | None:
    """Return what to call losses that do not end clearly below the first, and how they went."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    if len(finite) < 2:
        return None
    first, last, best = finite[0], finite[-1], min(finite)
    change = (last - first) / abs(first) if first else 0.0
    if change < -_FAIR_FALL:
        return None
    ends = f"from {number(first, 3)} to {number(last, 3)} ({share(change)})"
    if change < -_LEAST_FALL:
        return "Little progress", f"the loss fell {ends}"
    if best < first - _FAIR_FALL * abs(first):
        fell = f"the loss fell from {number(first, 3)} to {number(best, 3)}"
        return LOST_AGAIN, f"{fell} and rose to {number(last, 3)}"
    if change < _LEAST_FALL:
        epochs = counted(len(losses), "epoch")
        return NO_PROGRESS, f"the loss stayed at {number(last, 3)} over {epochs}"
    return NO_PROGRESS, f"the loss rose {ends}"
