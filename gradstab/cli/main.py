"""The command `gradstab`.

Nothing here imports Keras or TensorFlow, so that `--help` and wrong arguments answer at once; a
command imports them when it runs.

Exit codes: 0 all went well, 1 training failed or a diagnosis found an error, 2 bad arguments or
data, with one line on stderr.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from gradstab import __version__
from gradstab._errors import DivergenceError
from gradstab.cli import demo, diagnose, evaluate, repair, report, train
from gradstab.cli.console import InputError, RunFailedError, one_line

_COMMANDS = (demo, train, evaluate, report, diagnose, repair)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: Arguments after the program's name; those of the process by default.

    >>> main(["train", "--epochs", "0"])  # prints one line on stderr
    2
    """
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as exit_:  # argparse ends the process, for `--help` too
        return int(exit_.code or 0)
    try:
        code: int = arguments.run(arguments)
        return code
    except InputError as error:
        return _fail(arguments.command, str(error), 2)
    except (DivergenceError, RunFailedError) as error:
        return _fail(arguments.command, str(error), 1)
    except KeyboardInterrupt:
        return _fail(arguments.command, "interrupted", 130)


def _fail(command: str, message: str, code: int) -> int:
    sys.stdout.flush()
    print(f"gradstab {command}: error: {one_line(message)}", file=sys.stderr, flush=True)
    return code


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
        subparser.set_defaults(run=command.run)
    return parser
