"""`gradstab report`: what a run record tells, as a page, as text, as JSON, or live."""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Final

from gradstab.cli.console import InputError, refusing_bad_input, say

SUMMARY: Final = "report on a run as a page, as text, as JSON, or live"
DESCRIPTION: Final = (
    "Reads the record in a run directory, written by GradientMonitor or training.train, of a run "
    "that has ended, was killed or is still running. Writes a page with figures and tables that "
    "needs no network; or prints "
    "a summary as text or JSON; or, with --watch, follows the run in the terminal until its record "
    "says that it ended, or Ctrl-C."
)
_POLL_SECONDS: Final = 1.0
_BACKLOG: Final = 10  # lines that --watch begins with


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "run_dir", type=Path, metavar="RUN_DIR", help="a run directory, or the record in it"
    )
    parser.add_argument(
        "--format",
        choices=("html", "text", "json"),
        help="html writes a page (default), text and json print",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="file to write (RUN_DIR/report.html for html, the terminal for text and json)",
    )
    parser.add_argument("--watch", action="store_true", help="follow a running training")


def run(arguments: argparse.Namespace) -> int:
    """Write, print or follow, and return the exit code."""
    if arguments.watch:
        if arguments.format or arguments.output:
            raise InputError("--watch prints to the terminal; leave out --format and --output")
        return _watch(arguments.run_dir)
    with refusing_bad_input(), warnings.catch_warnings():
        # Lines that can't be read are told of in the report itself.
        warnings.filterwarnings("ignore", message=".*lines that could not be read")
        if arguments.format in (None, "html"):
            say(_write_page(arguments.run_dir, arguments.output))
            return 0
        text = _words(arguments.run_dir, arguments.format)
        if arguments.output is None:
            say(text)
            return 0
        _write_text(arguments.output, text)
    say(arguments.output)
    return 0


# NumPy and the reports are imported late, so that `--help` of any command answers at once.


def _write_page(run_dir: Path, output: Path | None) -> Path:
    from gradstab.reports.html import write_html

    return write_html(run_dir, output)


def _words(run_dir: Path, form: str) -> str:
    from gradstab.monitoring.record import read_record
    from gradstab.reports.text import to_json, to_text

    return (to_json if form == "json" else to_text)(read_record(run_dir))


def _write_text(output: Path, text: str) -> None:
    from gradstab.reports._files import whole_file

    with whole_file(output) as file:
        file.write(f"{text}\n".encode())


def _watch(run_dir: Path) -> int:
    from gradstab.reports.live import Tail, to_line

    if not run_dir.exists():
        raise InputError(f"there is no run directory: {run_dir}")
    tail = Tail(run_dir)
    with refusing_bad_input():
        backlog = tail.look()
    if not backlog:
        say(f"waiting for {tail.path}")
    try:
        for entry in backlog[-_BACKLOG:]:
            say(to_line(entry))
        while not tail.ended:
            time.sleep(_POLL_SECONDS)
            for entry in tail.look():
                say(to_line(entry))
    except KeyboardInterrupt:  # the way to end it
        print()
    return 0
