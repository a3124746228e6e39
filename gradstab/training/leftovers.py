"""What a run left in its directory, read and checked before anything goes on from it.

The files are data from outside: they may be torn, empty, of another run, or written by hand. What
contradicts itself is refused by the name of the file, since going on from it would lose the run.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any, NoReturn

import keras
import numpy as np

from gradstab._errors import RunDirectoryError
from gradstab.training.strategy import FORMS

_WEIGHTS = re.compile(r"epoch-(\d{6,})\.weights\.h5")
_FIX = "Put the file back as it was, or pass another `run_dir` to begin anew"


@dataclasses.dataclass
class Progress:
    """Where a run stands after its last completed epoch.

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
        checksum: Of weights and moments; `None` in runs of earlier versions.
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


def weights_name(epochs_done: int) -> str:
    """Return the name of the weights after so many epochs."""
    return f"epoch-{epochs_done:06d}.weights.h5"


def holds_a_run(directory: Path) -> bool:
    """Whether something of a run lies in a directory."""
    names = ("config.json", "history.json", "model.keras", "checkpoints/state.json")
    return any((directory / name).exists() for name in names) or bool(_weights_in(directory))


def read_run(directory: Path) -> tuple[dict[str, Any], Progress]:
    """Return the configuration and the progress of a run, both empty where there is none.

    Raises:
        RunDirectoryError: If files are lost, broken, or contradict each other.
    """
    if not holds_a_run(directory):
        return {}, Progress()
    config_file, state_file = directory / "config.json", directory / "checkpoints" / "state.json"
    config = _config(config_file)
    if state_file.exists():
        return config, _progress(state_file, config)
    # Killed in its first epoch, or just after: nothing is lost by beginning again.
    if (directory / "history.json").exists() or max(_weights_in(directory), default=1) > 1:
        _refuse(state_file, "is lost")
    return config, Progress()


def checked_weights(directory: Path, progress: Progress) -> Path:
    """Return the file of weights that belongs to a state.

    Raises:
        RunDirectoryError: If it is lost or not as it was written, or if the best model is.
    """
    best = directory / "model.keras"
    if progress.best_epoch is not None:
        _check_archive(best)
    file = directory / "checkpoints" / weights_name(progress.epochs_done)
    if not file.is_file():
        _refuse(file, "is lost")
    return file


def checksum(model: Any) -> str:
    """Return a number made of all that a file of weights holds, to tell it from a changed one."""
    total = 0
    for variable in (*model.weights, *model.optimizer.variables):
        value = np.ascontiguousarray(keras.ops.convert_to_numpy(variable))
        total = zlib.crc32(value.tobytes(), total)
    return f"crc32 {total:08x}"


def unusable(file: Path, error: Exception) -> RunDirectoryError:
    """Return the error that says that what a file holds does not fit the model."""
    return RunDirectoryError(
        _refusal(file, f"can't be loaded into the model ({_first_line(error)})")
    )


def _config(file: Path) -> dict[str, Any]:
    if not file.exists():
        _refuse(file, "is lost")
    config = _read_json(file)
    arguments, model, loop = config.get("arguments"), config.get("model"), config.get("loop", {})
    if not isinstance(arguments, dict):
        _refuse_foreign(file, "it holds no `arguments`")
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
        _refuse(file, "lacks what a run writes into it, or contradicts itself")
    return config


def _progress(file: Path, config: dict[str, Any]) -> Progress:
    state = _read_json(file)
    known = {field.name for field in dataclasses.fields(Progress)}
    weights = state.pop("weights", None)
    if not {"epochs_done", "history"} <= set(state):
        _refuse(file, "lacks what a run writes into it")
    unknown = sorted(set(state) - known)
    if unknown:
        _refuse(file, f"has fields that gradstab does not know: {', '.join(unknown)[:80]}")
    progress = Progress(**state)
    problem = _contradiction(progress, weights, config["arguments"]["monitor"])
    if problem:
        _refuse(file, f"contradicts itself: {problem}")
    return progress


def _contradiction(progress: Progress, weights: Any, monitor: str) -> str | None:
    """Return what can't be true of a state, or `None`."""
    done, elsewhere, history = progress.epochs_done, progress.epochs_elsewhere, progress.history
    if not (_is_count(done) and done > 0 and _is_count(elsewhere)):
        return f"`epochs_done` is {done!r:.80}"
    if weights != weights_name(done):
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
        if not _is_number(value) or epoch >= done or (place >= 0 and value not in logged):
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
    return None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _weights_in(directory: Path) -> list[int]:
    """Return after how many epochs the weights were written that lie in a directory."""
    try:
        names = [entry.name for entry in (directory / "checkpoints").iterdir()]
    except OSError:
        return []
    return [int(found[1]) for found in map(_WEIGHTS.fullmatch, names) if found]


def _check_archive(file: Path) -> None:
    if not file.is_file():
        _refuse(file, "is lost, the best model so far")
    try:
        with zipfile.ZipFile(file) as archive:
            broken = archive.testzip()
    except Exception as error:  # whatever a broken archive makes of it
        _refuse(file, f"is broken ({_first_line(error)})")
    if broken is not None:
        _refuse(file, f"is broken (in {broken!r:.80})")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        # Whatever is in it: it is no JSON.
        _refuse_foreign(file, _first_line(error))
    if not isinstance(content, dict):
        _refuse_foreign(file, "it holds no object")
    return content


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200].rstrip(". ")


def _refusal(file: Path, problem: str) -> str:
    return f"`run_dir` holds a run that can't go on: {os.fspath(file)!r} {problem}. {_FIX}"


def _refuse_foreign(file: Path, problem: str) -> NoReturn:
    raise RunDirectoryError(
        f"`run_dir` holds a file that no run wrote: {os.fspath(file)!r} ({problem}). {_FIX}"
    )


def _refuse(file: Path, problem: str) -> NoReturn:
    raise RunDirectoryError(_refusal(file, problem))
