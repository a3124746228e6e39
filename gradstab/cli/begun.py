"""The arguments that `gradstab train` saves, and the check when a run is resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from gradstab.cli.console import InputError, read_command, write_whole

COMMAND_FILE: Final = "command.json"
# What a resumed run must not change; it may train for more epochs.
_SAME: Final = (
    "data",
    "optimizer",
    "learning_rate",
    "clip",
    "batch_size",
    "image_size",
    "augment",
    "l2",
    "seed",
)
KEPT: Final = ("epochs", *_SAME)


def begun_command(output: Path, resume: bool) -> dict[str, Any]:
    """Return the command that the run in a directory was begun with; empty for a new run.

    Raises:
        InputError: If there is a run that is not to be resumed, or one of another program.
    """
    file = output / COMMAND_FILE
    if not file.exists() and not (output / "config.json").exists():
        return {}
    if not resume:
        raise InputError(f"{output} holds a run already. Add --resume, or name another --output")
    if not file.exists():
        raise InputError(f"the run in {output} was not begun by `gradstab train`")
    return read_command(file)


def check_same(output: Path, before: dict[str, Any], command: dict[str, Any]) -> None:
    """Refuse to go on with another run than was begun.

    Args:
        output: The run directory.
        before: The command that the run was begun with.
        command: That of now.

    Raises:
        InputError: If they differ, but for more epochs.
    """
    if not before:
        return
    changed = [name for name in _SAME if before.get(name) != command[name]]
    if changed:
        told = ", ".join(_as_argument(name, before.get(name)) for name in changed)
        raise InputError(f"the run in {output} was begun with {told}. Resume it with the same")
    epochs = before.get("epochs")
    if isinstance(epochs, int) and command["epochs"] < epochs:
        raise InputError(
            f"the run in {output} was begun with --epochs {epochs}. Resume it with as many or more"
        )


def write_command(output: Path, command: dict[str, Any]) -> None:
    """Write the command into the run directory."""
    write_whole(output / COMMAND_FILE, json.dumps(command, indent=1))


def _as_argument(name: str, value: Any) -> str:
    """Return what stands for a value on the command line."""
    flag = f"--{name.replace('_', '-')}"
    if name == "clip" and value is None:
        return f"{flag} none"
    if value is None or value is False:
        return f"no {flag}"
    return flag if value is True else f"{flag} {value}"
