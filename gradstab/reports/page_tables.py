"""The tables of the page: facts, epochs, incidents, variables, configuration."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, Final

from gradstab.reports._words import NOTHING, counted, printable
from gradstab.reports.epochs import log_names
from gradstab.reports.facts import facts
from gradstab.reports.incidents import Incident
from gradstab.reports.summary import Summary
from gradstab.reports.text import VARIABLE_COLUMNS, epoch_row, incident_steps, variable_row
from gradstab.reports.variables import Variable

OPEN_ROWS: Final = 40  # rows up to which a table stands open
_MOST_INCIDENTS: Final = 1000  # rows; the first and the last ones where there are more
_WIDE_FACTS: Final = ("end", "first bad variable", "unreadable lines")


def facts_card(summary: Summary) -> str:
    """Return the summary as a card of facts; the verdict stands above it already."""
    bad = {"end": "not finite" in summary.ending or summary.ending.startswith("stopped")}
    bad["first bad variable"] = summary.first_bad_variable is not None
    bad["unreadable lines"] = bool(summary.problems)
    bad["last loss"] = summary.last_loss is not None and summary.best_loss is not None and not (
        abs(summary.last_loss) < float("inf")
    )  # fmt: skip
    cells = []
    for name, words in facts(summary):
        if name == "verdict":
            continue
        kinds = ["wide"] * (name in _WIDE_FACTS) + ["bad"] * bad.get(name, False)
        opening = f'<div class="{" ".join(kinds)}">' if kinds else "<div>"
        shown = escape(printable(words, 1000))
        cells.append(f"{opening}<dt>{escape(name)}</dt><dd>{shown}</dd></div>")
    return "\n".join(['<dl class="facts card">', *cells, "</dl>"])


def epochs(summary: Summary) -> str:
    """Return losses and metrics of all epochs; nothing if no epoch is complete."""
    if not summary.epochs:
        return ""
    names = log_names(summary.epochs)
    rows = [_row(epoch_row(each, names)) for each in summary.epochs]
    header = ("epoch", "last step", *(printable(name, 40) for name in names))
    body = table(header, rows, numbers=range(len(header)))
    return details(f"Epochs ({len(rows):,})", body, is_open=len(rows) <= OPEN_ROWS)


def incidents(found: Sequence[Incident]) -> str:
    """Return what happened; of many the first and the last."""
    if not found:
        return details("Incidents (0)", '<p class="note">Nothing happened.</p>', is_open=False)
    half = _MOST_INCIDENTS // 2
    left_out = max(0, len(found) - 2 * half)
    shown = [*found[:half], *found[half + left_out :]] if left_out else found
    rows = [
        f'<tr><td class="number">{incident_steps(each)}</td>'
        f"<td>{escape(printable(each.what))}</td><td>{escape(printable(each.details, 500))}</td>"
        "</tr>"
        for each in shown
    ]
    body = table(("steps", "what", "details"), rows, numbers=range(1))
    if left_out:
        between = f"{counted(left_out, 'row')} between the first and the last {half} left out."
        body += f'<p class="note">{between}</p>'
    title = f"Incidents ({len(found):,})"
    return details(title, body, is_open=len(found) <= OPEN_ROWS)


def variables(found: Sequence[Variable]) -> str:
    """Return a row for each variable; what is not finite stands out."""
    rows = []
    for variable in found:
        name, *cells = variable_row(variable)
        row = [f'<td class="name">{escape(name)}</td>']
        for place, cell in enumerate(cells):
            lost = cell in ("nan", "inf", "-inf") or (place == 2 and cell not in ("0", NOTHING))
            row.append(f'<td class="number{" bad" if lost else ""}">{escape(cell)}</td>')
        rows.append(f"<tr>{''.join(row)}</tr>")
    body = table(VARIABLE_COLUMNS, rows, numbers=range(1, len(VARIABLE_COLUMNS)))
    body = body if rows else '<p class="note">None recorded.</p>'
    title = f"Variables ({len(found):,})"
    return details(title, body, is_open=0 < len(found) <= OPEN_ROWS)


def mapping(title: str, entries: dict[str, Any]) -> str:
    """Return names and values."""
    rows = []
    for name, value in entries.items():
        words = value if isinstance(value, str) else json.dumps(value, default=str)
        shown = escape(printable(words, 1000))
        rows.append(f'<tr><td class="name">{escape(printable(name))}</td><td>{shown}</td></tr>')
    body = table(("name", "value"), rows) if rows else '<p class="note">Not recorded.</p>'
    return details(title, body, is_open=0 < len(rows) <= OPEN_ROWS)


def details(title: str, body: str, *, is_open: bool) -> str:
    """Return something that folds."""
    opening = "<details open>" if is_open else "<details>"
    return f"{opening}<summary>{escape(title)}</summary>\n{body}\n</details>"


def table(header: Sequence[str], rows: Iterable[str], numbers: Sequence[int] = ()) -> str:
    """Return a table that scrolls; the columns in `numbers` are flush right."""
    cells = "".join(
        f'<th scope="col" class="{"number" if place in numbers else "words"}">{escape(name)}</th>'
        for place, name in enumerate(header)
    )
    # Can be reached by keyboard, so that it can be scrolled by one.
    return "\n".join(
        ['<div class="table" tabindex="0"><table>', f"<thead><tr>{cells}</tr></thead><tbody>",
         *rows, "</tbody></table></div>"]
    )  # fmt: skip


def _row(cells: Sequence[str]) -> str:
    shown = "".join(
        f'<td class="number{" bad" if cell in ("nan", "inf", "-inf") else ""}">{escape(cell)}</td>'
        for cell in cells
    )
    return f"<tr>{shown}</tr>"
