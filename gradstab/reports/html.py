"""One page about a run: offline, in a single file, without scripts."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from gradstab import __version__
from gradstab.monitoring.record import Record, read_record
from gradstab.reports._drawing import new_figure
from gradstab.reports._files import whole_file
from gradstab.reports._page import POLICY, STYLE
from gradstab.reports._svg import drawn
from gradstab.reports._words import NOTHING, counted, printable
from gradstab.reports.figures import plot_gradient_norm
from gradstab.reports.layers import plot_activations, plot_layer_norms, plot_update_ratio
from gradstab.reports.rates import plot_effective_rate
from gradstab.reports.steps import plot_clip_rate, plot_incidents, plot_linearity
from gradstab.reports.summary import Incident, Summary, Variable, facts, summarize
from gradstab.reports.text import VARIABLE_COLUMNS, incident_steps, variable_row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILE_NAME: Final = "report.html"
_OPEN_ROWS: Final = 40  # rows up to which a table stands open
_MOST_INCIDENTS: Final = 1000  # rows; the first and the last ones where there are more
_WIDE_FACTS: Final = ("end", "first bad variable", "unreadable lines")


class _Figure(NamedTuple):
    name: str
    title: str
    caption: str
    plot: Callable[..., Axes]
    size: tuple[float, float] | None  # `None`: the function chooses, and the page gives a row

    def draw(self, record: Record) -> Axes:
        ax = None if self.size is None else new_figure(self.size).subplots()
        return self.plot(record, ax)


FIGURES: Final = (
    _Figure(
        "layers", "Gradient norm per layer",
        "Before the transforms. A column that darkens towards the top is a gradient that vanishes "
        "on its way to the first layers; one that brightens explodes.",
        plot_layer_norms, None,
    ),
    _Figure(
        "norm", "Global gradient norm",
        "Before and after the transforms, with the bound if the run had one.",
        plot_gradient_norm, (6.4, 3.6),
    ),
    _Figure(
        "incidents", "Loss and incidents",
        "Marks along the top are what happened; the table below tells more of each.",
        plot_incidents, (6.4, 3.6),
    ),
    _Figure(
        "ratios", "Updates beside the weights",
        "Far below the band weights hardly move, far above they are overwritten. "
        "Outside is a hint and no proof.",
        plot_update_ratio, (6.4, 3.6),
    ),
    _Figure(
        "clips", "Clip rate",
        "A clip that bounds nearly every step acts as a smaller learning rate.",
        plot_clip_rate, (6.4, 3.6),
    ),
    _Figure(
        "linearity", "Linearity of the steps",
        "Where what is predicted and what came agree on the probe, a step is in the linear regime; "
        "far apart, the rate is too high.",
        plot_linearity, (6.4, 3.6),
    ),
    _Figure(
        "effective-rate", "Effective learning rate",
        "What the optimizer makes of the rate, layer by layer: the median over a layer's weights, "
        "and the middle half of them.",
        plot_effective_rate, (6.4, 3.8),
    ),
    _Figure(
        "activations", "Activations over depth",
        "At the last sampled step; dotted at the first.",
        plot_activations, (6.4, 4.2),
    ),
)  # fmt: skip


def write_html(run_dir: str | os.PathLike[str], path: str | os.PathLike[str] | None = None) -> Path:
    """Write a page about a run, whole or not at all, and return its path.

    It is one file that needs no network and runs no script: figures, summary, incidents, a table
    of all variables, configuration and versions. It can be written while the run goes on.

    Args:
        run_dir: A run directory, or the record in it.
        path: The file; `report.html` beside the record if `None`. Folders are made.

    Raises:
        FileNotFoundError: If there is no record.
        ImportError: If matplotlib is missing: `pip install "gradstab[report]"`.
        ValueError: If the record can't be read.

    Example: `write_html("runs/first")` after a `fit` with
    `callbacks=[gradstab.callbacks.GradientMonitor("runs/first")]`.
    """
    record = read_record(run_dir)
    target = record.path.parent / FILE_NAME if path is None else Path(path)
    page = to_html(record)
    with whole_file(target) as file:
        file.write(page.encode())
    return target


def to_html(record: Record) -> str:
    """Return the page about a record; `write_html` writes it."""
    summary = summarize(record)
    name = printable(record.path.resolve().parent.name or "run")
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            _head(name),
            "<body>",
            f"<header><h1>{escape(name)}</h1>",
            f'<p class="quiet">{escape(_subtitle(summary))}</p></header>',
            "<main>",
            _facts(summary),
            _figures(record),
            "<h2>Tables</h2>",
            _incidents(summary.incidents),
            _variables(summary.variables),
            _mapping("Configuration", summary.config),
            _mapping("Versions", summary.versions),
            "</main>",
            f"<footer>Written by gradstab {escape(__version__)} from "
            f"{escape(printable(record.path.name))}.</footer>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _head(name: str) -> str:
    return "\n".join(
        [
            '<head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="referrer" content="no-referrer">',
            f"<title>{escape(name)} · gradstab report</title>",
            f"<style>{STYLE}</style></head>",
        ]
    )


def _subtitle(summary: Summary) -> str:
    optimizer = summary.config.get("optimizer")
    parts = [
        "Training report",
        counted(len(summary.variables), "variable"),
        None if summary.last_step is None else f"up to step {summary.last_step:,}",
        None if optimizer is None else printable(optimizer),
    ]
    return " · ".join(filter(None, parts))


def _facts(summary: Summary) -> str:
    bad = {"end": "not finite" in summary.ending or summary.ending.startswith("stopped")}
    bad["first bad variable"] = summary.first_bad_variable is not None
    bad["unreadable lines"] = bool(summary.problems)
    bad["last loss"] = summary.last_loss is not None and summary.best_loss is not None and not (
        abs(summary.last_loss) < float("inf")
    )  # fmt: skip
    cells = []
    for name, words in facts(summary):
        kinds = ["wide"] * (name in _WIDE_FACTS) + ["bad"] * bad.get(name, False)
        opening = f'<div class="{" ".join(kinds)}">' if kinds else "<div>"
        shown = escape(printable(words, 1000))
        cells.append(f"{opening}<dt>{escape(name)}</dt><dd>{shown}</dd></div>")
    return "\n".join(["<h2>Summary</h2>", '<dl class="facts card">', *cells, "</dl>"])


def _figures(record: Record) -> str:
    there, missing = [], []
    for figure in FIGURES:
        svg = drawn(functools.partial(figure.draw, record), figure.name, figure.title)
        wide = ' class="wide"' if figure.size is None else ""
        if svg is None:
            missing.append(
                f'<li id="{figure.name}">{escape(figure.title)}</li>',
            )
            continue
        there.append(
            f'<figure id="{figure.name}"{wide}>\n<div class="scroll">{svg}</div>\n'
            f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
        )
    parts = ["<h2>Figures</h2>", '<div class="figures">', *there, "</div>"] if there else []
    if missing:
        parts += [
            '<div class="missing card"><p>Not in this record, so not drawn:</p>',
            "<ul>",
            *missing,
        ]
        parts += ["</ul></div>"]
    return "\n".join(parts)


def _incidents(incidents: Sequence[Incident]) -> str:
    if not incidents:
        return _details("Incidents (0)", '<p class="note">Nothing happened.</p>', is_open=False)
    half = _MOST_INCIDENTS // 2
    left_out = max(0, len(incidents) - 2 * half)
    shown = [*incidents[:half], *incidents[half + left_out :]] if left_out else incidents
    rows = [
        f'<tr><td class="number">{incident_steps(each)}</td>'
        f"<td>{escape(printable(each.what))}</td><td>{escape(printable(each.details, 500))}</td>"
        "</tr>"
        for each in shown
    ]
    body = _table(("steps", "what", "details"), rows, numbers=range(1))
    if left_out:
        between = f"{counted(left_out, 'row')} between the first and the last {half} left out."
        body += f'<p class="note">{between}</p>'
    title = f"Incidents ({len(incidents):,})"
    return _details(title, body, is_open=len(incidents) <= _OPEN_ROWS)


def _variables(variables: Sequence[Variable]) -> str:
    rows = []
    for variable in variables:
        name, *cells = variable_row(variable)
        row = [f'<td class="name">{escape(name)}</td>']
        for place, cell in enumerate(cells):
            lost = cell in ("nan", "inf", "-inf") or (place == 2 and cell not in ("0", NOTHING))
            row.append(f'<td class="number{" bad" if lost else ""}">{escape(cell)}</td>')
        rows.append(f"<tr>{''.join(row)}</tr>")
    body = _table(VARIABLE_COLUMNS, rows, numbers=range(1, len(VARIABLE_COLUMNS)))
    body = body if rows else '<p class="note">None recorded.</p>'
    title = f"Variables ({len(variables):,})"
    return _details(title, body, is_open=0 < len(variables) <= _OPEN_ROWS)


def _mapping(title: str, mapping: dict[str, Any]) -> str:
    rows = []
    for name, value in mapping.items():
        words = value if isinstance(value, str) else json.dumps(value, default=str)
        shown = escape(printable(words, 600))
        rows.append(f'<tr><td class="name">{escape(printable(name))}</td><td>{shown}</td></tr>')
    body = _table(("name", "value"), rows) if rows else '<p class="note">Not recorded.</p>'
    return _details(title, body, is_open=0 < len(rows) <= _OPEN_ROWS)


def _details(title: str, body: str, *, is_open: bool) -> str:
    opening = "<details open>" if is_open else "<details>"
    return f"{opening}<summary>{escape(title)}</summary>\n{body}\n</details>"


def _table(header: Sequence[str], rows: Iterable[str], numbers: Sequence[int] = ()) -> str:
    cells = "".join(
        f'<th scope="col" class="{"number" if place in numbers else "words"}">{escape(name)}</th>'
        for place, name in enumerate(header)
    )
    # Can be reached by keyboard, so that it can be scrolled by one.
    return "\n".join(
        ['<div class="table" tabindex="0"><table>', f"<thead><tr>{cells}</tr></thead><tbody>",
         *rows, "</tbody></table></div>"]
    )  # fmt: skip
