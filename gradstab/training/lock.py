"""One run at a time in a directory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from gradstab._errors import RunDirectoryError

try:
    import fcntl
except ImportError:  # Windows has no such lock, and none is held there.
    fcntl = None  # type: ignore[assignment]

NAME = ".running"


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a directory for one run, and leave it as it was if nothing was put into it.

    The operating system holds the lock for the process, and lets go of it however that ends.

    Args:
        directory: Made if it is not there.

    Raises:
        RunDirectoryError: If another run holds it, or nothing can be written there.
    """
    missing = [folder for folder in (directory, *directory.parents) if not folder.exists()]
    try:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            file = _acquired(directory / NAME)
        except OSError as error:
            raise RunDirectoryError(
                "`run_dir` must be a directory that can be written to. Received: "
                f"run_dir={os.fspath(directory)!r} ({error.strerror or error})"
            ) from error
        try:
            yield
        finally:
            # While it is held, so that nobody waits for a file that is no longer there.
            (directory / NAME).unlink(missing_ok=True)
            os.close(file)
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _acquired(path: Path) -> int:
    """Return the lock file, open and held.

    Raises:
        RunDirectoryError: If another process holds it.
        OSError: If it can't be written.
    """
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its holder may have removed it after it was opened here.
            if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                os.ftruncate(file, 0)
                os.write(file, str(os.getpid()).encode())
                return file
        except BlockingIOError as error:
            holder = os.read(file, 20).decode(errors="replace")
            os.close(file)
            raise RunDirectoryError(
                "`run_dir` is in use by another run, which goes on. Received: "
                f"run_dir={os.fspath(path.parent)!r}, held by process {holder or 'unknown'}. Wait "
                "for it to end, or pass another `run_dir`"
            ) from error
        except BaseException:
            os.close(file)
            raise
        os.close(file)
