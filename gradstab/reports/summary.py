"""The summary of a run record, in numbers and words, for page, text and JSON."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import Any

import numpy as np

from gradstab.monitoring.entries import Epoch, Event, Totals
from gradstab.monitoring.record import Record
from gradstab.reports.ending import divergence_of, end_of, ending, interruption_of
from gradstab.reports.incidents import Incident, incidents
from gradstab.reports.variables import Variable, variables
from gradstab.reports.verdict import verdict


@dataclasses.dataclass(frozen=True)
class Summary:
    """A run in numbers and words; `None` for values that the record does not have.

    Attributes:
        verdict: The outcome of the run, in a sentence.
        started: When the run began.
        runs: Number of parts of the run; a resumed run has more than one.
        last_step: Number of the last recorded step or event.
        recorded_steps: Steps that the record holds.
        sampled_steps: Those of them with numbers per variable.
        totals: Counts and extremes over every step, or, if the record lacks these, over the
            recorded steps.
        counts_every_step: Whether `totals` are over every step.
        skipped: Steps that were skipped, by cause.
        missed: Steps that were not recorded, since telemetry was not read in time.
        clipped_share: Share of the steps that were clipped.
        last_loss: Loss of the last step that was applied, NaN or infinite too.
        best_loss: Smallest finite loss of a step.
        best_loss_step: Its step.
        largest_norm: Largest finite global gradient norm before the transforms.
        largest_norm_step: Its step.
        first_bad_variable: The first variable named by a skip, and the step.
        ending: The end of the run, in words.
        epochs: Completed epochs.
        variables: All of them, in the order of the header.
        incidents: Incidents in the order of the record, with equal neighbours merged.
        config: Configuration of the run.
        versions: Versions of the run.
        problems: Lines of the record that could not be read.
        earlier: The runs before this one in the same record, oldest first.
    """

    verdict: str
    started: str
    runs: int
    last_step: int | None
    recorded_steps: int
    sampled_steps: int
    totals: Totals
    counts_every_step: bool
    skipped: dict[str, int]
    missed: int
    clipped_share: float | None
    last_loss: float | None
    best_loss: float | None
    best_loss_step: int | None
    largest_norm: float | None
    largest_norm_step: int | None
    first_bad_variable: tuple[str, int | None] | None
    ending: str
    epochs: tuple[Epoch, ...]
    variables: tuple[Variable, ...]
    incidents: tuple[Incident, ...]
    config: dict[str, Any]
    versions: dict[str, Any]
    problems: tuple[str, ...]
    earlier: tuple[Summary, ...] = ()

    @property
    def total_skipped(self) -> int:
        """Number of skipped steps."""
        return sum(self.skipped.values())


def summarize(record: Record) -> Summary:
    """Return the summary of a record.

    Args:
        record: As `read_record` returns it.
    """
    totals = record.totals or _of_recorded_steps(record)
    is_known = record.totals is not None or "clipped" in record.columns
    last_steps = [int(step) for step in record.steps[-1:]]
    last_steps += [event.step for event in record.events if event.step is not None]
    versions, config = record.header["versions"], record.header["config"]
    return Summary(
        verdict=_verdict(record, totals),
        started=str(record.runs[0]["started"]),
        runs=len(record.runs),
        last_step=max(last_steps, default=None),
        recorded_steps=len(record.steps),
        sampled_steps=len(record.norms.steps),
        totals=totals,
        counts_every_step=record.totals is not None,
        skipped=dict(Counter(totals.skipped_by).most_common()),
        missed=sum(_missed(event) for event in record.events),
        clipped_share=totals.clipped / totals.steps if is_known and totals.steps else None,
        last_loss=totals.last_loss,
        best_loss=totals.best_loss,
        best_loss_step=totals.best_loss_step,
        largest_norm=totals.largest_norm,
        largest_norm_step=totals.largest_norm_step,
        first_bad_variable=_first_bad(record),
        ending=ending(record),
        epochs=record.epochs,
        variables=variables(record),
        incidents=tuple(incidents(record)),
        config=config if isinstance(config, dict) else {},
        versions=versions if isinstance(versions, dict) else {},
        problems=record.problems,
        earlier=tuple(map(summarize, record.earlier)),
    )


def _verdict(record: Record, totals: Totals) -> str:
    losses = [epoch.logs["loss"] for epoch in record.epochs if "loss" in epoch.logs]
    told = verdict(totals, losses, divergence_of(record), interruption_of(record))
    if end_of(record) is not None or not totals.steps:
        return told
    return f"Going on, or killed: no end is recorded. So far: {told[0].lower()}{told[1:]}"


def _of_recorded_steps(record: Record) -> Totals:
    """Return totals over the steps that a record holds, where it has none over all."""
    nothing = np.zeros(0)
    loss = record.columns.get("loss", nothing)
    best, best_step = _extreme(record.steps, -loss)
    largest, largest_step = _extreme(record.steps, record.columns.get("grad_norm", nothing))
    skipped = _skipped(record)
    clipped = record.columns.get("clipped", nothing)
    return Totals(
        steps=max(len(record.steps), sum(skipped.values())),
        clipped=int((np.nan_to_num(clipped) > 0).sum()),
        skipped=sum(skipped.values()),
        skipped_by=skipped,
        best_loss=None if best is None else -best,
        best_loss_step=best_step,
        largest_norm=largest,
        largest_norm_step=largest_step,
        last_loss=float(loss[-1]) if len(loss) else None,
    )


def _extreme(steps: Any, values: Any) -> tuple[float | None, int | None]:
    finite = np.isfinite(values)
    if not finite.any():
        return None, None
    place = int(np.argmax(np.where(finite, values, -math.inf)))
    return float(values[place]), int(steps[place])


def _skipped(record: Record) -> dict[str, int]:
    """Count skipped steps once each, though a resumed run may have told of one again."""
    causes: dict[int, str] = {}
    flags = record.columns.get("skipped", np.zeros(len(record.steps)))
    for step in record.steps[np.nan_to_num(flags) > 0]:
        causes[int(step)] = "cause not recorded"
    unplaced: Counter[str] = Counter()
    for event in record.events:
        if event.name == "skip":
            cause = str(event.details.get("cause") or "cause not recorded")
            if event.step is None:
                unplaced[cause] += 1
            else:
                causes[event.step] = cause
    return dict((Counter(causes.values()) + unplaced).most_common())


def _missed(event: Event) -> int:
    steps = event.details.get("steps")
    return steps if event.name == "missed" and isinstance(steps, int) else 0


def _first_bad(record: Record) -> tuple[str, int | None] | None:
    for event in record.events:
        variable = event.details.get("variable")
        if event.name == "skip" and variable is not None:
            return str(variable), event.step
    return None
