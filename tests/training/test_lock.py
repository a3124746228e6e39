"""A run directory is held by one process, by the lock that the system has."""

import errno
import os
import types

import pytest

from gradstab.training import lock


@pytest.fixture
def windows(monkeypatch):
    """Locks as Windows has them: one byte of a file, refused with "permission denied"."""
    held = set()

    def locking(file, mode, count):
        key = os.fstat(file).st_ino, os.lseek(file, 0, os.SEEK_CUR), count
        if key in held:
            raise PermissionError(errno.EACCES, "Permission denied")
        held.add(key)

    def close(file, close=os.close):
        held.difference_update({key for key in held if key[0] == os.fstat(file).st_ino})
        close(file)

    monkeypatch.setattr(lock, "fcntl", None)
    fake = types.SimpleNamespace(locking=locking, LK_NBLCK=2)
    monkeypatch.setattr(lock, "msvcrt", fake, raising=False)
    monkeypatch.setattr(lock.os, "close", close)
    return held


def test_windows_locks_a_byte_and_tells_who_holds_it(windows, tmp_path):
    with lock.locked(tmp_path):
        assert len(windows) == 1
        assert next(iter(windows))[1] > 100, "nobody can read a byte that is locked"
        message = rf"in use .* held by process {os.getpid()}\b"
        with pytest.raises(ValueError, match=message), lock.locked(tmp_path):
            pass
    assert not windows
    assert not (tmp_path / lock.NAME).exists()


def test_windows_removes_no_open_file(windows, tmp_path, monkeypatch):
    unlink, refused = lock.Path.unlink, []

    def locked_unlink(path, **arguments):
        if windows:
            refused.append(path)
            raise PermissionError(errno.EACCES, "used by another process")
        unlink(path, **arguments)

    monkeypatch.setattr(lock.Path, "unlink", locked_unlink)
    with lock.locked(tmp_path):
        pass
    assert refused == [tmp_path / lock.NAME]
    assert not (tmp_path / lock.NAME).exists()
