"""Shared parts of the commands: errors in one line, checked arguments, quiet TensorFlow, tables."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"


class InputError(Exception):
    """What a person gave can't be used; `main` prints it in one line and exits with 2."""


class RunFailedError(Exception):
    """Training could not go on; `main` prints why in one line and exits with 1."""


def one_line(message: str) -> str:
    """Return a message without line breaks and control characters."""
    return printable(" ".join(message.split()))


def in_words_of(flags: Mapping[str, str], message: str) -> str:
    """Return a message of the library with the flags of a command in place of its arguments.

    >>> in_words_of({"image_size": "--image-size"}, "`image_size` is too small: image_size=(4, 4)")
    '--image-size is too small: --image-size 4'
    """
    for name, flag in flags.items():
        message = message.replace(f"`{name}=True`", flag).replace(f"{name}=True", flag)
        message = message.replace(f"`{name}`", flag)
        message = re.sub(rf"\b{name}=\((\d+), \1\)", rf"{flag} \1", message)
        message = re.sub(rf"\b{name}=", f"{flag} ", message)
    return message


def printable(text: str) -> str:
    """Return text in which nothing commands the terminal: names of files may hold anything."""
    return "".join(
        each if each.isprintable() or each in "\n\t" else each.encode("unicode_escape").decode()
        for each in text
    )


def say(text: object) -> None:
    """Print what may hold names from outside."""
    print(printable(str(text)), flush=True)


def read_command(file: Path) -> dict[str, Any]:
    """Return what `gradstab train` wrote down of its arguments.

    Raises:
        InputError: If the file holds something else.
    """
    try:
        command = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} can't be read ({str(error)[:200]})") from error
    kinds: dict[str, tuple[type, ...]] = {
        "data": (str,),
        "batch_size": (int,),
        "image_size": (int, type(None)),
        "seed": (int,),
    }
    if not isinstance(command, dict) or not all(
        type(command[name]) in kind for name, kind in kinds.items() if name in command
    ):
        raise InputError(f"{file} is not what `gradstab train` wrote")
    return command


@contextlib.contextmanager
def refusing_bad_input() -> Iterator[None]:
    """Turn what gradstab and Keras raise about bad arguments and data into an `InputError`.

    For loading and building only. An error of these types in training is a fault of the program,
    and keeps its traceback.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise InputError(str(error) or type(error).__name__) from error


def writable_folder(path: Path) -> Path:
    """Make a folder, try to write into it, and return it, before hours of work depend on it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(f"--output {path} can't be written: {error.strerror or error}") from error
    return path


def write_whole(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def whole_number(minimum: int, maximum: float = math.inf) -> Callable[[str], int]:
    """Return an argument's type: an integer of at least `minimum`, at most `maximum`."""

    def parse(text: str) -> int:
        with contextlib.suppress(ValueError):
            if minimum <= int(text) <= maximum:
                return int(text)
        limit = "" if maximum == math.inf else f" and at most {maximum}"
        raise argparse.ArgumentTypeError(
            f"must be an integer of at least {minimum}{limit}. Received: {text}"
        )

    return parse


seed_number = whole_number(0, 2**32 - 1)  # NumPy takes no larger seed


def positive_number(text: str) -> float:
    """An argument's type: a positive, finite number."""
    with contextlib.suppress(ValueError):
        if 0.0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"must be a positive number. Received: {text}")


def quiet_tensorflow() -> None:
    """Import TensorFlow and Keras without the C++ log lines of a start, nor those that follow.

    Some are written before TensorFlow has read its log level, so stderr is kept aside meanwhile,
    and shown if the import fails. `TF_CPP_MIN_LOG_LEVEL`, where a person has set it, is respected.
    """
    if _LOG_LEVEL in os.environ or "tensorflow" in sys.modules:
        importlib.import_module("keras")
        return
    os.environ[_LOG_LEVEL] = "3"
    sys.stderr.flush()
    original = os.dup(2)
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            importlib.import_module("keras")
            # Looking for devices logs as well.
            tensorflow = importlib.import_module("tensorflow")
            tensorflow.config.list_physical_devices()
            tensorflow.get_logger().setLevel("ERROR")
        except BaseException:
            aside.seek(0)
            os.write(original, aside.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(original, 2)
            os.close(original)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return a table as text; the first `left` columns flush left, the others flush right."""
    widths = [max(len(row[place]) for row in (header, *rows)) for place in range(len(header))]
    lines = [list(header), ["-" * width for width in widths], *map(list, rows)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
