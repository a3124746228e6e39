"""Incidents of a run, in words: events repeated at steps in a row are merged."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from gradstab.monitoring.entries import ENDS, Event
from gradstab.monitoring.record import Record


@dataclasses.dataclass(frozen=True)
class Incident:
    """An incident, at one step or at several steps in a row.

    Attributes:
        first: Step, or `None` where it belongs to none.
        last: Last step of the row.
        count: How often.
        name: Name of the event.
        what: Its kind, in words.
        details: Its details, in words.
    """

    first: int | None
    last: int | None
    count: int
    name: str
    what: str
    details: str


def incidents(record: Record) -> Iterator[Incident]:
    """Yield what happened in the order of the record; the end of the run is none of it."""
    pending: Incident | None = None
    for event in (*record.events, *record.findings):
        if event.name in ENDS:
            continue
        details = {name: value for name, value in event.details.items() if name != "cause"}
        new = Incident(event.step, event.step, 1, event.name, kind(event), describe(details))
        if pending is not None and _continues(pending, new):
            pending = dataclasses.replace(pending, last=new.last, count=pending.count + 1)
            continue
        if pending is not None:
            yield pending
        pending = new
    if pending is not None:
        yield pending


def describe(details: dict[str, Any]) -> str:
    """Return an event's details in words: `variable a/kernel, steps 3`."""
    return ", ".join(f"{name} {value}" for name, value in details.items() if value is not None)


def kind(event: Event) -> str:
    """Return in words what kind of incident an event is."""
    cause = event.details.get("cause")
    words = {
        "skip": "skipped",
        "clip": "bound changed",
        "stop": "stopped",
        "missed": "missed steps",
        "zero_gradient": "gradient exactly zero",
        "rollback": "rolled back",
        "rate_raised": "learning rate raised again",
        "gave_up": "recovery given up",
        "origin": "what began a bad step",
    }
    return f"{words.get(event.name, event.name)}{f': {cause}' if cause else ''}"


def _continues(pending: Incident, new: Incident) -> bool:
    same = (pending.name, pending.what, pending.details) == (new.name, new.what, new.details)
    return same and None not in (pending.last, new.first) and new.first == (pending.last or 0) + 1
