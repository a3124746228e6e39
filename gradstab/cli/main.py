"""The command `gradstab`.

Nothing here imports Keras or TensorFlow, so that `--help` and wrong arguments answer at once; a
command imports them when it runs.

Exit codes: 0 all went well, 1 training failed or a diagnosis found an error, 2 bad arguments or
data, with one line on stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from gradstab import __version__
from gradstab._errors import DivergenceError
from gradstab.cli import demo, diagnose, evaluate, repair, report, train
from gradstab.cli.console import InputError, RunFailedError, in_words_of, one_line

_BROKEN_PIPE = 141  # as the shell has it for a command that the signal ends
_COMMANDS = (demo, train, evaluate, report, diagnose, repair)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: Arguments after the program's name; those of the process by default.

    >>> main(["train", "--epochs", "0"])  # prints one line on stderr
    2
    """
    try:
        arguments = _parsed(argv)
    except SystemExit as exit_:  # argparse ends the process, for `--help` too
        return int(exit_.code or 0)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except InputError as error:
        help_ = f" (see `gradstab {arguments.command} --help`)"
        return _fail(arguments, f"{str(error).rstrip('.')}{help_}", 2)
    except (DivergenceError, RunFailedError) as error:
        return _fail(arguments, str(error), 1)
    except KeyboardInterrupt:
        return _fail(arguments, "interrupted", 130)
    except BrokenPipeError:  # such as `gradstab report RUN_DIR --format text | head`
        _drop_output()
        return _BROKEN_PIPE


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments; those that no command knows are refused by the command's name."""
    arguments, unknown = _parser().parse_known_args(argv)
    if unknown:
        arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return arguments


def _fail(arguments: argparse.Namespace, message: str, code: int) -> int:
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    words = one_line(in_words_of(_flags(arguments), message))
    print(f"gradstab {arguments.command}: error: {words}", file=sys.stderr, flush=True)
    return code


def _flags(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the flags of a command by what the library calls them."""
    flags = {name: f"--{name.replace('_', '-')}" for name in vars(arguments)}
    is_positional = "run_dir" in flags
    own = {"name_or_folder": "--data", "path": "RUN_DIR", "model": "the model"}
    return flags | own | {"run_dir": "RUN_DIR" if is_positional else "--output"}


def _drop_output() -> None:
    """Have what is still to be written go nowhere, or Python complains when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Parser(argparse.ArgumentParser):
    """Refuses in one line, without the usage text before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {one_line(message)} (see `{self.prog} --help`)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="gradstab",
        description="Keeps Keras training stable: prevents, watches and explains exploding and "
        "vanishing gradients.",
        epilog="Exit codes: 0 fine, 1 training failed or a diagnosis found an error, 2 bad "
        "arguments or data.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gradstab {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        name = command.__name__.rpartition(".")[2]
        subparser = commands.add_parser(
            name,
            help=command.SUMMARY,
            description=command.DESCRIPTION,
            allow_abbrev=False,
        )
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run, parser=subparser)
    return parser
