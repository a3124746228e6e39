"""What a run record comes to, in numbers and words; the page, the text and the JSON show it."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from gradstab.monitoring.record import ENDS, Event, PerVariable, Record
from gradstab.reports._words import counted, number, share
from gradstab.reports.steps import kind


@dataclasses.dataclass(frozen=True)
class Variable:
    """What the record tells of one variable; `None` is what it does not.

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


@dataclasses.dataclass(frozen=True)
class Incident:
    """Something that happened, once or at several steps in a row.

    Attributes:
        first: Step, or `None` where it belongs to none.
        last: Last step of the row.
        count: How often.
        name: Name of the event.
        what: What, in words.
        details: Its details, in words.
    """

    first: int | None
    last: int | None
    count: int
    name: str
    what: str
    details: str


@dataclasses.dataclass(frozen=True)
class Summary:
    """A record in numbers and words; `None` is what the record does not tell.

    Attributes:
        started: When the first run began.
        runs: How many runs the record holds; a resumed one is another.
        last_step: Number of the last recorded step or event.
        recorded_steps: Steps that the record holds.
        sampled_steps: Those of them with numbers per variable.
        skipped: Steps that were skipped, by cause.
        missed: Steps that were not recorded, since nobody looked in time.
        clipped_share: Share of the recorded steps that were clipped.
        last_loss: Loss of the last recorded step, NaN or infinite too.
        best_loss: Smallest finite loss.
        best_loss_step: Its step.
        largest_norm: Largest finite global gradient norm before the transforms.
        largest_norm_step: Its step.
        first_bad_variable: The variable that the first skip with one names, and its step.
        ending: How the run ended, in words.
        variables: All of them, in the order of the header.
        incidents: What happened, in the order of the record, equal neighbours together.
        config: Configuration of the last run.
        versions: Versions of the last run.
        problems: Lines of the record that could not be read.
    """

    started: str
    runs: int
    last_step: int | None
    recorded_steps: int
    sampled_steps: int
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
    variables: tuple[Variable, ...]
    incidents: tuple[Incident, ...]
    config: dict[str, Any]
    versions: dict[str, Any]
    problems: tuple[str, ...]

    @property
    def total_skipped(self) -> int:
        """Number of skipped steps."""
        return sum(self.skipped.values())


def summarize(record: Record) -> Summary:
    """Return what a record comes to.

    Args:
        record: As `read_record` returns it.
    """
    steps, columns = record.steps, record.columns
    nothing = np.zeros(0)
    loss, norm = columns.get("loss", nothing), columns.get("grad_norm", nothing)
    clipped = columns.get("clipped", nothing)
    clipped = clipped[np.isfinite(clipped)]
    best, best_step = _extreme(steps, -loss)
    largest, largest_step = _extreme(steps, norm)
    last_steps = [int(step) for step in steps[-1:]]
    last_steps += [event.step for event in record.events if event.step is not None]
    versions, config = record.header["versions"], record.header["config"]
    return Summary(
        started=str(record.runs[0]["started"]),
        runs=len(record.runs),
        last_step=max(last_steps, default=None),
        recorded_steps=len(steps),
        sampled_steps=len(record.norms.steps),
        skipped=_skipped(record),
        missed=sum(_missed(event) for event in record.events),
        clipped_share=float((clipped > 0).mean()) if len(clipped) else None,
        last_loss=float(loss[-1]) if len(loss) else None,
        best_loss=None if best is None else -best,
        best_loss_step=best_step,
        largest_norm=largest,
        largest_norm_step=largest_step,
        first_bad_variable=_first_bad(record),
        ending=_ending(record, loss),
        variables=_variables(record),
        incidents=tuple(_incidents(record)),
        config=config if isinstance(config, dict) else {},
        versions=versions if isinstance(versions, dict) else {},
        problems=record.problems,
    )


def describe(details: dict[str, Any]) -> str:
    """Return an event's details in words: `variable a/kernel, steps 3`."""
    return ", ".join(f"{name} {value}" for name, value in details.items() if value is not None)


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


def _ending(record: Record, loss: Any) -> str:
    words = []
    ends = [event for event in record.events if event.name in ENDS]
    if ends:
        words.append(_told_end(ends[-1]))
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
    if not ends:
        words.append("the record names no end: the run goes on, was killed, or ended as planned")
    return "; ".join(words)


def _told_end(end: Event) -> str:
    details = dict(end.details)
    cause, message = details.pop("cause", None), details.pop("message", None)
    words = "stopped" if end.name == "stop" else "ended"
    words += "" if end.step is None else f" at step {end.step:,}"
    words += "" if cause is None else f" ({cause})"
    more = "; ".join(str(part) for part in (message, describe(details)) if part)
    return f"{words}: {more}" if more else words


def _variables(record: Record) -> tuple[Variable, ...]:
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


def _incidents(record: Record) -> Iterator[Incident]:
    """Yield what happened, steps in a row with the same words together."""
    pending: Incident | None = None
    for event in (*record.events, *record.findings):
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


def _continues(pending: Incident, new: Incident) -> bool:
    same = (pending.name, pending.what, pending.details) == (new.name, new.what, new.details)
    return same and None not in (pending.last, new.first) and new.first == (pending.last or 0) + 1


def facts(summary: Summary) -> list[tuple[str, str]]:
    """Return the summary as rows of a label and its words."""
    skipped = counted(summary.total_skipped, "step")
    if summary.skipped:
        by_cause = ", ".join(f"{cause} {count:,}" for cause, count in summary.skipped.items())
        skipped = f"{skipped} ({by_cause})"
    bad = summary.first_bad_variable
    rows = [
        ("end", summary.ending),
        ("started", _time(summary.started) or "not recorded"),
        ("last step", "none" if summary.last_step is None else f"{summary.last_step:,}"),
        ("recorded", _recorded(summary)),
        ("skipped", skipped),
        ("clipped", _clipped(summary.clipped_share)),
        ("last loss", "not recorded" if summary.last_loss is None else number(summary.last_loss)),
        ("best loss", _at(summary.best_loss, summary.best_loss_step)),
        ("largest gradient norm", _of_norm(summary)),
        ("first bad variable", "none recorded" if bad is None else _named(*bad)),
    ]
    if summary.missed:
        rows.append(("missed", f"{counted(summary.missed, 'step')} that nobody looked at in time"))
    if summary.problems:
        rows.append(("unreadable lines", f"{len(summary.problems)}: {summary.problems[0]}"))
    return rows


def _time(started: str) -> str:
    return started.replace("T", " ").removesuffix("+00:00") + " UTC" * started.endswith("+00:00")


def _recorded(summary: Summary) -> str:
    words = counted(summary.recorded_steps, "step")
    words += f", {counted(summary.sampled_steps, 'sample')} per variable"
    return words if summary.runs == 1 else f"{words}, {summary.runs} runs"


def _clipped(part: float | None) -> str:
    return "not recorded" if part is None else f"{share(part)} of the recorded steps"


def _at(value: float | None, step: int | None) -> str:
    return "not recorded" if value is None else f"{number(value)} at step {step:,}"


def _of_norm(summary: Summary) -> str:
    if summary.largest_norm == 0:
        return "exactly zero at every recorded step: nothing can be learned so"
    return _at(summary.largest_norm, summary.largest_norm_step)


def _named(name: str, step: int | None) -> str:
    return name if step is None else f"{name} at step {step:,}"
