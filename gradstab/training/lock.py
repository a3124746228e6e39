"""One run at a time in a directory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from gradstab._errors import RunDirectoryError

try:
    import fcntl
except ImportError:  # Windows locks bytes of a file in its place.
    fcntl = None  # type: ignore[assignment]
    import msvcrt

NAME = ".running"
# The byte that Windows locks. Nobody else can read it then, so it lies beyond what is written.
_BYTE = 1 << 20


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
            # While it is held, so that nobody waits for a file that is no longer there. Windows
            # removes no open file: there it stays, held by nobody, until it is removed below.
            with contextlib.suppress(PermissionError):
                (directory / NAME).unlink(missing_ok=True)
            os.close(file)
            if fcntl is None:
                with contextlib.suppress(OSError):
                    (directory / NAME).unlink(missing_ok=True)
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
            _lock(file)
            # Its holder may have removed it after it was opened here.
            if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                os.lseek(file, 0, os.SEEK_SET)
                os.ftruncate(file, 0)
                os.write(file, str(os.getpid()).encode())
                return file
        except BlockingIOError as error:
            os.lseek(file, 0, os.SEEK_SET)
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


def _lock(file: int) -> None:
    """Lock an open file, and return at once.

    Raises:
        BlockingIOError: If another process holds it.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    os.lseek(file, _BYTE, os.SEEK_SET)
    try:
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
    except PermissionError as error:  # its word for "held by another"
        raise BlockingIOError from error
