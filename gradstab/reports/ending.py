"""The end of a run, in words."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradstab.monitoring.entries import ENDS, Event
from gradstab.monitoring.record import Record
from gradstab.reports.incidents import describe


def end_of(record: Record) -> Event | None:
    """Return the event with which the run ended, or `None` where the record has none."""
    return next((event for event in reversed(record.events) if event.name in ENDS), None)


def divergence_of(record: Record) -> str | None:
    """Return why the run was stopped, or `None` if it was not, or by an exception."""
    end = end_of(record)
    if end is None or end.name != "stop" or interruption_of(record) is not None:
        return None
    told = end.details.get("message") or end.details.get("cause")
    return str(told or describe(end.details) or "stopped")


def interruption_of(record: Record) -> str | None:
    """Return the name of the exception that ended the run, or `None`."""
    end = end_of(record)
    if end is None or end.details.get("cause") != "interrupted":
        return None
    return str(end.details.get("message"))


def ending(record: Record) -> str:
    """Return how the run ended: its last event, and what became of the loss."""
    loss = record.columns.get("loss", np.zeros(0))
    words = []
    end = end_of(record)
    if end is not None:
        words.append(_told(end))
    finite = np.isfinite(loss)
    if len(loss) and not finite.any():
        words.append("no finite loss is recorded")
    elif len(loss) and not finite[-1]:
        lost = int(np.argmax(finite[::-1]))
        first = int(record.steps[len(loss) - lost])
        words.append(
            f"the loss of the last recorded step, {first:,}, is not finite"
            if lost == 1
            else f"the loss is not finite at the last {lost:,} recorded steps, from {first:,} on"
        )
    if end is None:
        words.append("no end is recorded: the run goes on, or was killed")
    return "; ".join(words)


def _told(end: Event) -> str:
    details: dict[str, Any] = dict(end.details)
    cause, message = details.pop("cause", None), details.pop("message", None)
    words = "stopped" if end.name == "stop" else "ended"
    words += "" if end.step is None else f" at step {end.step:,}"
    words += "" if cause is None else f" ({cause})"
    more = "; ".join(str(part) for part in (message, describe(details)) if part)
    return f"{words}: {more}" if more else words
