"""Files of an earlier run, read and checked before a run resumes from them.

The files are data from outside: they may be torn, empty, of another run, or written by hand. What
contradicts itself is refused by the name of the file, since going on from it would lose the run.
"""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from gradstab._errors import RunDirectoryError
from gradstab.training.callback_state import are_states, names_of_arrays
from gradstab.training.files import (
    BrokenFileError,
    check_archive,
    checksum,
    first_line,
    read_json,
    refuse,
    refuse_foreign,
)
from gradstab.training.strategy import FORMS

_WEIGHTS = re.compile(r"epoch-(\d{6,})\.weights\.h5")
_FILES = ("config.json", "history.json", "model.keras", "record.jsonl")
STATE = "state.json"
STATE_BEFORE = "before.json"


@dataclasses.dataclass
class Progress:
    """Where a run stands: after its last completed epoch, or amid the next one.

    Attributes:
        epochs_done: Completed epochs.
        history: Every log by name, one value per epoch that had it.
        best_value: The best value of the monitored log; None before there is one.
        best_epoch: The epoch (from 0) that it comes from.
        epochs_since_best: Epochs without improvement in a row.
        stopped: Whether something stopped the run before its last epoch.
        random_states: The states of the layers' seed generators, which no weights file holds.
        coefficients: Those of the regularizers and penalties, which none holds either.
        epochs_elsewhere: Completed epochs that a backup of Keras' knew of, and this history does
            not.
        checksum: Of the file of weights and moments; `None` in runs of earlier versions.
        callbacks: What callbacks keep of themselves (`callback_state`).
        step: Steps of the next epoch that were taken, of a run that was asked to leave.
        metrics: The metrics of these steps.
        logs: Their logs.
        seen: How many steps an optimizer of gradstab's counted among them, and skipped.
    """

    epochs_done: int = 0
    history: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
    best_value: float | None = None
    best_epoch: int | None = None
    epochs_since_best: int = 0
    stopped: bool = False
    random_states: list[list[int]] = dataclasses.field(default_factory=list)
    coefficients: list[float] = dataclasses.field(default_factory=list)
    epochs_elsewhere: int = 0
    checksum: str | None = None
    callbacks: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    step: int = 0
    metrics: list[Any] = dataclasses.field(default_factory=list)
    logs: dict[str, float] = dataclasses.field(default_factory=dict)
    seen: list[int] = dataclasses.field(default_factory=lambda: [0, 0])


def weights_name(epochs_done: int, step: int = 0) -> str:
    """Return the name of the weights after so many epochs, and steps of the next one."""
    amid = f"-step-{step:09d}" if step else ""
    return f"epoch-{epochs_done:06d}{amid}.weights.h5"


def holds_a_run(directory: Path) -> bool:
    """Whether something of a run lies in a directory."""
    names = ("config.json", "history.json", "model.keras", "checkpoints/state.json")
    return any((directory / name).exists() for name in names) or bool(_weights_in(directory))


def read_run(directory: Path) -> tuple[dict[str, Any], Progress]:
    """Return the configuration and the progress of a run, both empty where there is none.

    Raises:
        RunDirectoryError: If files are lost, broken, or contradict each other, those of the
            checkpoint before the last too.
    """
    _refuse_folders(directory)
    if not holds_a_run(directory):
        return {}, Progress()
    config = _config(directory / "config.json")
    state, before = (directory / "checkpoints" / name for name in (STATE, STATE_BEFORE))
    if not (state.exists() or before.exists()):
        # Killed in its first epoch, or just after: nothing is lost by beginning again.
        if (directory / "history.json").exists() or max(_weights_in(directory), default=1) > 1:
            refuse(state, "is lost")
        return config, Progress()
    try:
        return config, _checked(state, config)
    except BrokenFileError as error:
        if not before.exists():
            raise
        try:
            progress = _checked(before, config)
        except BrokenFileError:
            raise error from None
        where = f"epoch {progress.epochs_done}" + (f", step {progress.step}" * bool(progress.step))
        warnings.warn(
            f"The run in `run_dir` goes on from the checkpoint before the last, which was written "
            f"after {where}: {error.problem}",
            stacklevel=4,
        )
        return config, progress


def _checked(state: Path, config: dict[str, Any]) -> Progress:
    """Return the progress that a state tells, once all files that belong to it are as written."""
    if not state.exists():
        refuse(state, "is lost")
    progress = _progress(state, config)
    if progress.best_epoch is not None:
        check_archive(state.parent.parent / "model.keras")
    file = state.parent / weights_name(progress.epochs_done, progress.step)
    if not file.is_file():
        refuse(file, "is lost")
    written = progress.checksum or ""
    if written.startswith("file ") and written != checksum(file):
        refuse(file, "is not as the run wrote it")
    read_arrays(state.parent, progress)
    return progress


def arrays_name(progress: Progress) -> str:
    """Return the name of the file with the arrays that callbacks keep."""
    name = weights_name(progress.epochs_done, progress.step)
    return name.replace(".weights.h5", ".callbacks.npz")


def read_arrays(checkpoints: Path, progress: Progress) -> dict[str, Any]:
    """Return the arrays that callbacks kept.

    Raises:
        BrokenFileError: If the file is lost or not whole.
    """
    names = names_of_arrays(progress.callbacks)
    if not names:
        return {}
    file = checkpoints / arrays_name(progress)
    if not file.is_file():
        refuse(file, "is lost")
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except Exception as error:  # whatever a broken archive makes of it
        refuse(file, f"is broken ({first_line(error)})")


def unusable(file: Path, error: Exception) -> RunDirectoryError:
    """Return the error that says that what a file holds does not fit the model."""
    return BrokenFileError(file, f"can't be loaded into the model ({first_line(error)})")


def _config(file: Path) -> dict[str, Any]:
    if not file.exists():
        refuse(file, "is lost")
    config = read_json(file)
    arguments, model, loop = config.get("arguments"), config.get("model"), config.get("loop", {})
    if not isinstance(arguments, dict):
        refuse_foreign(file, "it holds no `arguments`")
    is_whole = (
        isinstance(model, dict)
        and "steps" in config
        and _is_count(arguments.get("epochs"))
        and isinstance(arguments.get("monitor"), str)
        and _is_count(config.get("order_seed"))
        and arguments.get("seed") in (None, config.get("order_seed"))
        and isinstance(loop, dict)
        and loop.get("form") in FORMS
    )
    if not is_whole:
        refuse(file, "lacks what a run writes into it, or contradicts itself")
    return config


def _progress(file: Path, config: dict[str, Any]) -> Progress:
    state = read_json(file)
    known = {field.name for field in dataclasses.fields(Progress)}
    weights = state.pop("weights", None)
    if not {"epochs_done", "history"} <= set(state):
        refuse(file, "lacks what a run writes into it")
    unknown = sorted(set(state) - known)
    if unknown:
        refuse(file, f"has fields that gradstab does not know: {', '.join(unknown)[:80]}")
    progress = Progress(**state)
    problem = _contradiction(progress, weights, config["arguments"]["monitor"])
    if problem:
        refuse(file, f"contradicts itself: {problem}")
    return progress


def _contradiction(progress: Progress, weights: Any, monitor: str) -> str | None:
    """Return what can't be true of a state, or `None`."""
    done, elsewhere, history = progress.epochs_done, progress.epochs_elsewhere, progress.history
    if not (_is_count(done) and _is_count(progress.step) and _is_count(elsewhere)):
        return f"`epochs_done` is {done!r:.80}, and `step` {progress.step!r:.80}"
    if done + progress.step == 0:
        return "`epochs_done` is 0"
    if weights != weights_name(done, progress.step):
        return f"`weights` is {weights!r:.80} after {done} epochs"
    if not isinstance(history, dict) or not all(
        isinstance(each, list) for each in history.values()
    ):
        return "`history` holds no lists"
    longest = max(map(len, history.values()), default=0)
    if longest + elsewhere != done:
        return f"`epochs_done` is {done}, and `history` has {longest} epochs"
    value, epoch = progress.best_value, progress.best_epoch
    if (value is None) != (epoch is None):
        return "only one of `best_value` and `best_epoch` is there"
    if epoch is not None:
        logged = history.get(monitor, [])
        place = epoch - elsewhere if _is_count(epoch) else -1
        is_right = _is_count(epoch) and epoch < done and _is_number(value)
        if not is_right or (place >= 0 and value not in logged):
            return f"`best_value` is {value!r:.80}, in epoch {epoch!r:.80}"
        if len(logged) + elsewhere == done and place >= 0 and logged[place] != value:
            return f"`best_value` is {value!r:.80}, and `history` has another in epoch {epoch}"
    if not _is_count(progress.epochs_since_best) or progress.epochs_since_best > done:
        return f"`epochs_since_best` is {progress.epochs_since_best!r:.80}"
    if not isinstance(progress.stopped, bool):
        return f"`stopped` is {progress.stopped!r:.80}"
    states = progress.random_states
    is_states = isinstance(states, list) and all(
        isinstance(state, list) and all(_is_count(n) and n < 2**32 for n in state)
        for state in states
    )
    if not is_states:
        return "`random_states` holds no seeds"
    if not isinstance(progress.coefficients, list) or not all(
        _is_number(each) and each >= 0 for each in progress.coefficients
    ):
        return "`coefficients` holds no coefficients"
    if not (isinstance(progress.metrics, list) and isinstance(progress.logs, dict)):
        return "`metrics` or `logs` hold no numbers"
    seen = progress.seen
    if not (isinstance(seen, list) and len(seen) == 2 and all(map(_is_count, seen))):
        return "`seen` holds no counts"
    return None if are_states(progress.callbacks) else "`callbacks` holds no states"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _refuse_folders(directory: Path) -> None:
    """Refuse a folder where a run writes a file: the write would fail after hours of training."""
    files = [directory / name for name in _FILES]
    checkpoints = directory / "checkpoints"
    files += [checkpoints / STATE, checkpoints / STATE_BEFORE, *checkpoints.glob("epoch-*")]
    for file in files:
        if file.is_dir():
            refuse(file, "is a folder, where a run writes a file")


def _weights_in(directory: Path) -> list[int]:
    """Return after how many epochs the weights were written that lie in a directory."""
    try:
        names = [entry.name for entry in (directory / "checkpoints").iterdir()]
    except OSError:
        return []
    return [int(found[1]) for found in map(_WEIGHTS.fullmatch, names) if found]
