"""Files of a run: written as a whole or not at all, and read with doubt."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np

from gradstab._errors import RunDirectoryError

WRITING: Final = ".writing-"
_FIX: Final = "Put the file back as it was, or pass another `run_dir` to begin anew"


class BrokenFileError(RunDirectoryError):
    """A file that a run has to go on from is lost or broken.

    Attributes:
        problem: Which, and what is wrong with it.
    """

    def __init__(self, file: Path, problem: str, told: str = "a run that can't go on") -> None:
        self.problem = f"{os.fspath(file)!r} {problem}"
        super().__init__(f"`run_dir` holds {told}: {self.problem}. {_FIX}")


def refuse(file: Path, problem: str) -> NoReturn:
    """Refuse a file of a run."""
    raise BrokenFileError(file, problem)


def refuse_foreign(file: Path, problem: str) -> NoReturn:
    """Refuse a file that no run wrote."""
    raise BrokenFileError(file, f"({problem})", "a file that no run wrote")


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its name."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200].rstrip(". ")


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a file, or refuse it."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        # Whatever is in it: it is no JSON.
        refuse_foreign(file, first_line(error))
    if not isinstance(content, dict):
        refuse_foreign(file, "it holds no object")
    return content


def check_archive(file: Path) -> None:
    """Refuse an archive that is not whole."""
    if not file.is_file():
        refuse(file, "is lost, the best model so far")
    try:
        with zipfile.ZipFile(file) as archive:
            broken = archive.testzip()
    except Exception as error:  # whatever a broken archive makes of it
        refuse(file, f"is broken ({first_line(error)})")
    if broken is not None:
        refuse(file, f"is broken (in {broken!r:.80})")


def checksum(file: Path) -> str:
    """Return a number made of all that a file holds, to tell it from a changed one."""
    total = 0
    with file.open("rb") as opened:
        while part := opened.read(1 << 24):
            total = zlib.crc32(part, total)
    return f"file {total:08x}"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Put an object into a file."""
    text = json.dumps(content, indent=1, default=lambda value: np.asarray(value).tolist())
    replace(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))


def replace(path: Path, write: Callable[[str], Any]) -> None:
    """Have a file written under another name, and put it in the place of the one that is there.

    Raises:
        OSError: If the disk is full, or nothing can be written.
    """
    # Keras reads a file's kind off its ending, so the temporary name keeps it.
    temporary = path.with_name(f"{WRITING}{os.getpid()}-{path.name}")
    try:
        write(os.fspath(temporary))
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # HDF5 raises either for a full disk, and tells the system's number in its text.
        if isinstance(error, RuntimeError) and "errno" not in str(error):
            raise
        reason = getattr(error, "strerror", None) or str(error).strip().split("\n")[0][:200]
        raise OSError(
            f"`run_dir` can't be written any more: {os.fspath(path)!r} ({reason}). What it holds "
            "is whole up to the last complete epoch: make room, and go on with `resume=True`"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
