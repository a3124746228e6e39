"""Hostile records through `gradstab report`."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from gradstab.cli.main import main
from robustness_parts.records import cases

# Address space beyond what the process has, while a record is read.
_MEMORY = 3 << 30


def attacks(*, quick: bool) -> Iterator[tuple[str, str]]:
    """Yield each record's name, and what the report made of it: `"read"`, `"refused"`, or worse."""
    os.environ.setdefault("MPLBACKEND", "agg")
    with tempfile.TemporaryDirectory() as folder, _bounded_memory():
        for place, (name, content) in enumerate(cases(quick=quick)):
            (Path(folder) / "record.jsonl").write_bytes(content)
            # A page takes seconds to draw, and shares its reader with the text.
            form = "html" if not quick and place % 8 == 0 else "text"
            yield f"{name} ({form})", _outcome(Path(folder), form)


def _outcome(folder: Path, form: str) -> str:
    out, err = io.StringIO(), io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            code = main(["report", str(folder), "--format", form])
    except BaseException as error:
        return f"raw {type(error).__name__}: {str(error)[:120]}"
    if "\x1b" in out.getvalue() + err.getvalue():
        return "commands the terminal"
    if code == 2 and err.getvalue().count("\n") == 1:
        return "refused"
    return "read" if code == 0 else f"exit code {code}"


@contextlib.contextmanager
def _bounded_memory() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
