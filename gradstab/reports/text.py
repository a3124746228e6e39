"""The summary of a run as text for a terminal, and as JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any, Final

from gradstab.monitoring.record import Record
from gradstab.reports._words import NOTHING, counted, number, printable
from gradstab.reports.summary import Incident, Variable, facts, summarize

VARIABLE_COLUMNS: Final = (
    "variable", "grad norm", "largest", "not finite", "weight norm", "first ratio", "last ratio",
)  # fmt: skip
_MOST_ROWS: Final = 40


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
    if summary.incidents:
        parts.append(_incidents(summary.incidents))
    if summary.variables:
        parts.append(_variables(summary.variables))
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
