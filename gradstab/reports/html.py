"""The HTML page about a run: a single file without scripts."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path
from typing import Final

from gradstab import __version__
from gradstab.monitoring.record import Record, read_record
from gradstab.reports import page_tables
from gradstab.reports._files import whole_file
from gradstab.reports._page import POLICY, STYLE
from gradstab.reports._words import counted, printable
from gradstab.reports.page_figures import FIGURES, figures
from gradstab.reports.summary import Summary, summarize

FILE_NAME: Final = "report.html"
_OF_EARLIER_RUNS: Final = ("epochs", "incidents", "norm")
# Earlier runs with figures of their own; those before them have a line each.
_MOST_EARLIER: Final = 5
_GOOD: Final = ("Healthy",)
_BAD: Final = ("Diverged", "Lost", "Nothing")


def write_html(run_dir: str | os.PathLike[str], path: str | os.PathLike[str] | None = None) -> Path:
    """Write a page about a run, whole or not at all, and return its path.

    It is a single file that needs no network and runs no script: a verdict, a summary, figures, and
    tables of epochs, incidents, variables, configuration and versions. If the record holds several
    runs, the latest comes first and the earlier ones follow separately. It can be written during
    the run.

    Args:
        run_dir: A run directory, or the record in it.
        path: The file; `None` for `report.html` in the folder of the record. Folders are created.

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
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        _head(name),
        "<body>",
        f"<header><h1>{escape(name)}</h1>",
        _verdict(summary),
        f'<p class="quiet">{escape(_subtitle(summary))}</p></header>',
        "<main>",
        "<h2>Summary</h2>",
        page_tables.facts_card(summary),
        figures(record),
        "<h2>Tables</h2>",
        page_tables.epochs(summary),
        page_tables.incidents(summary.incidents),
        page_tables.variables(summary.variables),
        page_tables.mapping("Configuration", summary.config),
        page_tables.mapping("Versions", summary.versions),
        _earlier(record, summary),
        "</main>",
        f"<footer>Written by gradstab {escape(__version__)} from "
        f"{escape(printable(record.path.name))}.</footer>",
        "</body>",
        "</html>",
    ]
    return "\n".join([*filter(None, parts), ""])


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


def _verdict(summary: Summary) -> str:
    kind = " good" if summary.verdict.startswith(_GOOD) else ""
    kind = " bad" if summary.verdict.startswith(_BAD) else kind
    return f'<p class="verdict{kind}">{escape(printable(summary.verdict, 1000))}</p>'


def _subtitle(summary: Summary) -> str:
    optimizer = summary.config.get("optimizer")
    parts = [
        f"Run {len(summary.earlier) + 1} of {len(summary.earlier) + 1} in this record"
        if summary.earlier
        else "Training report",
        counted(len(summary.variables), "variable"),
        None if summary.last_step is None else f"up to step {summary.last_step:,}",
        None if optimizer is None else printable(optimizer, 1000),
    ]
    return " · ".join(filter(None, parts))


def _earlier(record: Record, summary: Summary) -> str:
    """Return the earlier runs of a record, the latest of them first."""
    if not summary.earlier:
        return ""
    runs = list(enumerate(zip(record.earlier, summary.earlier, strict=True), start=1))
    chosen = [figure for figure in FIGURES if figure.name in _OF_EARLIER_RUNS]
    parts = [f"<h2>Earlier runs in this record ({len(runs)})</h2>"]
    for place, (run, told) in reversed(runs):
        title = f"Run {place}: {printable(told.verdict, 300)}"
        body = f'<div class="inside">{page_tables.facts_card(told)}'
        if len(runs) - place < _MOST_EARLIER:
            body += "\n" + figures(run, chosen, prefix=f"run-{place}-").replace("h2>", "h3>")
        body += f"\n{page_tables.incidents(told.incidents)}</div>"
        parts.append(page_tables.details(title, body, is_open=False))
    return "\n".join(parts)
