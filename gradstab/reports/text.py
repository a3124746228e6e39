"""The summary of a run as text for a terminal, and as JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any, Final

from gradstab.monitoring.entries import Epoch
from gradstab.monitoring.record import Record
from gradstab.reports._words import NOTHING, counted, number, printable
from gradstab.reports.epochs import log_names
from gradstab.reports.facts import facts
from gradstab.reports.incidents import Incident
from gradstab.reports.summary import Summary, summarize
from gradstab.reports.variables import Variable

VARIABLE_COLUMNS: Final = (
    "variable", "grad norm", "largest", "not finite", "weight norm", "first ratio", "last ratio",
)  # fmt: skip
EARLIER_COLUMNS: Final = ("run", "steps", "last loss", "verdict")
_MOST_ROWS: Final = 40
_MOST_LOGS: Final = 6


def to_text(record: Record) -> str:
    """Return the summary of a record as text; long tables are cut.

    Args:
        record: As `read_record` returns it.

    Example: `print(to_text(read_record("runs/first")))`.
    """
    summary = summarize(record)
    rows = facts(summary)
    width = max(len(name) for name, _ in rows)
    parts = ["\n".join(f"{name:<{width}}  {printable(words, 1000)}" for name, words in rows)]
    if summary.epochs:
        parts.append(_epochs(summary))
    if summary.incidents:
        parts.append(_incidents(summary.incidents))
    if summary.variables:
        parts.append(_variables(summary.variables))
    if summary.earlier:
        parts.append(_earlier(summary))
    return "\n\n".join(parts)


def to_json(record: Record) -> str:
    """Return the summary of a record as strict JSON; NaN and infinities are strings.

    Args:
        record: As `read_record` returns it.
    """
    summary = summarize(record)
    fields = dataclasses.asdict(summary) | {"record": str(record.path)}
    bad = summary.first_bad_variable
    fields["first_bad_variable"] = None if bad is None else {"name": bad[0], "step": bad[1]}
    fields["earlier"] = [
        {name: value for name, value in run.items() if name != "variables"}
        for run in fields["earlier"]
    ]
    return json.dumps(_strict(fields), indent=2, allow_nan=False)


def variable_row(variable: Variable) -> list[str]:
    """Return the cells of a variable below `VARIABLE_COLUMNS`."""
    count = variable.nonfinite_samples
    return [
        printable(variable.name),
        number(variable.grad_norm, 3),
        number(variable.largest_grad_norm, 3),
        NOTHING if count is None else f"{count}",
        number(variable.weight_norm, 3),
        number(variable.first_ratio, 3),
        number(variable.last_ratio, 3),
    ]


def incident_steps(incident: Incident) -> str:
    """Return the steps of an incident: `17`, `17 to 23 (7)`, or a dash."""
    if incident.first is None:
        return NOTHING
    if incident.count == 1:
        return f"{incident.first:,}"
    return f"{incident.first:,} to {incident.last:,} ({incident.count:,})"


def epoch_row(epoch: Epoch, names: Sequence[str]) -> list[str]:
    """Return the cells of an epoch: its number, its last step, and the logs by name."""
    return [f"{epoch.number}", f"{epoch.step:,}", *(number(epoch.logs.get(n)) for n in names)]


def earlier_row(place: int, summary: Summary) -> list[str]:
    """Return the cells of an earlier run below `EARLIER_COLUMNS`."""
    return [
        f"{place}",
        f"{summary.totals.steps:,}",
        number(summary.last_loss),
        printable(summary.verdict, 300),
    ]


def _epochs(summary: Summary) -> str:
    names = log_names(summary.epochs)[:_MOST_LOGS]
    shown = summary.epochs[-_MOST_ROWS:]
    cut = _cut(len(summary.epochs) - len(shown), "earlier epoch")
    header = ("epoch", "last step", *(printable(name, 24) for name in names))
    return f"{_table(header, [epoch_row(each, names) for each in shown], left=0)}{cut}"


def _earlier(summary: Summary) -> str:
    runs = list(enumerate(summary.earlier, start=1))
    shown = runs[-_MOST_ROWS:]
    cut = _cut(len(runs) - len(shown), "run")
    rows = [earlier_row(place, each) for place, each in shown]
    title = f"Earlier runs in this record ({len(runs)}):"
    return f"{title}\n{_table(EARLIER_COLUMNS, rows, left=len(EARLIER_COLUMNS))}{cut}"


def _incidents(incidents: Sequence[Incident]) -> str:
    shown = incidents[-_MOST_ROWS:]
    rows = [[incident_steps(each), printable(each.what), printable(each.details)] for each in shown]
    cut = _cut(len(incidents) - len(shown), "earlier incident")
    return f"{_table(('steps', 'what', 'details'), rows, left=3)}{cut}"


def _variables(variables: Sequence[Variable]) -> str:
    shown = variables[:_MOST_ROWS]
    cut = _cut(len(variables) - len(shown), "more variable")
    return f"{_table(VARIABLE_COLUMNS, [variable_row(each) for each in shown], left=1)}{cut}"


def _cut(count: int, noun: str) -> str:
    return f"\n... and {counted(count, noun)}; --format json and html have all" if count else ""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    widths = [max(len(row[place]) for row in (header, *rows)) for place in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(
            f"{cell:<{width}}" if place < left else f"{cell:>{width}}"
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(name): _strict(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(entry) for entry in value]
    return value
