"""Names and numbers as a person reads them, whatever a model calls its layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

# What stands where there is no number.
NOTHING: Final = "-"
_UNPRINTABLE: Final = "\N{REPLACEMENT CHARACTER}"


def printable(text: Any, width: int = 200) -> str:
    """Return a text on one line, without control characters, cut in its middle to a width.

    The cut falls between two words where there are any near it.

    So that a name can neither steer a terminal, nor turn the direction of a page's text, nor hold
    what UTF-8 lacks.
    """
    line = " ".join(str(text).split())
    clean = "".join(char if char.isprintable() else _UNPRINTABLE for char in line)
    if len(clean) <= width:
        return clean
    # Names of layers differ at their ends.
    tail = (width - 1) * 2 // 3
    start, end = clean[: width - 1 - tail], clean[-tail:]
    if " " in start[len(start) // 2 :]:
        start = start[: start.rindex(" ") + 1]
    if " " in end[: len(end) // 2]:
        end = end[end.index(" ") :]
    return f"{start}…{end}"


def label(text: Any, width: int = 32) -> str:
    """Return a name for a figure, where matplotlib would take `$` for the start of a formula."""
    return printable(text, width).replace("$", r"\$")


def without_common_start(names: Sequence[str]) -> list[str]:
    """Return paths without the folders that all of them begin with, the model's name mostly."""
    parts = [name.split("/") for name in names]
    shared = 0
    while len(parts) > 1 and all(len(part) > shared + 1 for part in parts):
        if len({part[shared] for part in parts}) > 1:
            break
        shared += 1
    return ["/".join(part[shared:]) for part in parts]


def number(value: float | None, digits: int = 4) -> str:
    """Return a number with few digits, and a dash for none."""
    return NOTHING if value is None else f"{value:.{digits}g}"


def share(value: float | None) -> str:
    """Return a share in per cent, and a dash for none."""
    if value is None or math.isnan(value):
        return NOTHING
    percent = 100 * value
    return "< 0.1 %" if 0 < percent < 0.1 else f"{percent:.3g} %"


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: `1 step`, `1,200 steps`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
