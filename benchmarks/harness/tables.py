"""Numbers and tables as text."""

from __future__ import annotations

from collections.abc import Sequence


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
