"""Numbers and tables as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gradstab.cli.console import write_whole

MARKS = ("<!-- results -->", "<!-- end of results -->")


def with_interval(numbers: Sequence[float]) -> str:
    """Return a median with its 95 % interval."""
    median, low, high = numbers
    return f"{median:.3f} ({low:.3f} .. {high:.3f})"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table that is aligned as plain text too."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |"
        for line in lines
    )


def write_between_marks(page: Path, text: str) -> None:
    """Put text in the place of what stands between the marks of a page.

    Raises:
        ValueError: If the page does not hold each mark once.
    """
    old = page.read_text(encoding="utf-8")
    if any(old.count(mark) != 1 for mark in MARKS):
        raise ValueError(f"{page} must hold {MARKS[0]} and {MARKS[1]}, each once")
    before, rest = old.split(MARKS[0])
    write_whole(page, f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{rest.split(MARKS[1])[1]}")
