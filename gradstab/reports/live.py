"""A run record that is followed as it grows, a line for each thing that is new."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from gradstab.monitoring.entries import ENDS
from gradstab.monitoring.record import FILE_NAME
from gradstab.reports._words import printable
from gradstab.reports.incidents import describe

_KINDS = ("run", "step", "epoch", "event", "finding")
_SHOWN = ("loss", "grad_norm", "grad_norm_after", "update_ratio")


class Tail:
    """Reads the lines that a record has gained since the last look.

    A line that is not whole yet waits for the next look; one that is no JSON object is passed over,
    as `read_record` does. A record that was replaced by a shorter one is read from its start.

    Args:
        path: A run directory, in which the record need not be yet, or the record.

    Attributes:
        ended: Whether the last run in the record has written its end.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            self.path /= FILE_NAME
        self.ended = False
        self._offset = 0

    def look(self) -> list[dict[str, Any]]:
        """Return what is new: objects with a `kind`, as the record has them."""
        try:
            with self.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self._offset:
                    self._offset = 0
                file.seek(self._offset)
                # No further than whole lines go.
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        found = [entry for line in whole.splitlines() if (entry := _entry(line)) is not None]
        for entry in found:
            if entry["kind"] == "run":
                self.ended = False
            elif entry["kind"] == "event" and entry.get("event") in ENDS:
                self.ended = True
        return found


def to_line(entry: dict[str, Any]) -> str:
    """Return an object of a record on one line, whatever is in it."""
    kind = entry["kind"]
    if kind == "run":
        variables = entry.get("variables")
        count = len(variables) if isinstance(variables, list) else 0
        return printable(f"run started {entry.get('started', '')}, {count} variables")
    step = entry.get("step")
    at = "step      -" if step is None else f"step {step:>6}" if _is_int(step) else "step      ?"
    if kind == "step":
        scalars = entry.get("scalars")
        return f"{at}  {_scalars(scalars if isinstance(scalars, dict) else {})}"
    if kind == "epoch":
        logs = entry.get("logs")
        shown = (
            [f"{name} {_number(value)}" for name, value in logs.items()]
            if isinstance(logs, dict)
            else []
        )
        return printable(f"{at}  EPOCH {entry.get('epoch')}  {'  '.join(shown)}", 400).rstrip()
    details = entry.get("details")
    words = describe(details) if isinstance(details, dict) else ""
    return f"{at}  {printable(entry.get(kind), 40).upper()}  {printable(words)}".rstrip()


def _scalars(scalars: dict[str, Any]) -> str:
    parts = [f"{name} {_number(scalars[name])}" for name in _SHOWN if name in scalars]
    parts += [flag for flag in ("clipped", "skipped") if scalars.get(flag) in (1, 1.0, True)]
    return "  ".join(parts)


def _number(value: Any) -> str:
    return f"{value:<9.4g}" if isinstance(value, int | float) else f"{printable(value, 9):<9}"


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    known = isinstance(entry, dict) and entry.get("kind") in _KINDS
    return entry if known else None
