"""The run directory: what a run leaves on disk, loadable whenever the run is killed.

`config.json`, `history.json`, `model.keras` (the best so far) and `checkpoints/` (the last epoch).
Every file is written under a temporary name and renamed. `checkpoints/state.json` names the weights
that belong to it, so its renaming is the one moment at which an epoch counts as done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gradstab._coefficients import HasCoefficients
from gradstab._errors import RunDirectoryError
from gradstab.training.leftovers import (
    Progress,
    checked_weights,
    checksum,
    holds_a_run,
    read_run,
    unusable,
    weights_name,
)
from gradstab.training.lock import locked
from gradstab.training.penalized import penalties_of

_WRITING = ".writing-"


class RunDirectory:
    """Reads and writes one run directory.

    Args:
        path: The directory; made when the run begins.
        writes: Whether this process writes it. Of several workers one does; the others save too,
            since reading some variables takes all of them, and throw away what they saved.
    """

    def __init__(self, path: str | os.PathLike[str], writes: bool = True) -> None:
        self.path = Path(path)
        self._writes = writes
        self._is_new = True
        self._config = self.path / "config.json"
        self._history = self.path / "history.json"
        self._best = self.path / "model.keras"
        self._checkpoints = self.path / "checkpoints"
        self._state = self._checkpoints / "state.json"

    def open(self, *, resume: bool) -> tuple[dict[str, Any], Progress]:
        """Return the configuration and the progress of the run in here, both empty for a new one.

        Raises:
            RunDirectoryError: If a run is here that is not to be resumed, or can't be.
        """
        if not resume and holds_a_run(self.path):
            raise RunDirectoryError(
                f"`run_dir` holds a run already. Received: run_dir={os.fspath(self.path)!r}. Pass "
                "`resume=True` to go on with it, or another `run_dir`"
            )
        config, progress = read_run(self.path)
        self._is_new = not zipfile.is_zipfile(self._best)
        return config, progress

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Hold the directory for this run: a second one that asks for it is refused.

        Of several workers the one that writes holds it for all.

        Raises:
            RunDirectoryError: If another run holds it, or nothing can be written there.
        """
        return locked(self.path) if self._writes else contextlib.nullcontext()

    def begin(self, config: dict[str, Any], model: Any) -> None:
        """Write `config.json`, and for a new run the model as it begins."""
        if self._writes:
            self.path.mkdir(parents=True, exist_ok=True)
            for folder in (self.path, self._checkpoints):
                for leftover in folder.glob(f"{_WRITING}*"):
                    leftover.unlink(missing_ok=True)
        self._write_json(self._config, config)
        if self._is_new:
            # Also the earliest moment to learn that a model can't be saved.
            try:
                self.save_best(model)
            except Exception:
                if self._writes:
                    self._config.unlink(missing_ok=True)
                raise

    def restore(self, model: Any, progress: Progress) -> None:
        """Put the model, its optimizer and its seed generators where `progress` was made.

        Raises:
            RunDirectoryError: If a file is lost, broken, or does not fit the model.
        """
        weights = checked_weights(self.path, progress)
        try:
            model.load_weights(weights)
            if progress.checksum not in (None, checksum(model)):
                raise ValueError("its numbers are not those that the run wrote")
        except Exception as error:  # of h5py and Keras, in as many ways as a file can be wrong
            raise unusable(weights, error) from error
        try:
            for variable, state in zip(_seed_states(model), progress.random_states, strict=True):
                variable.assign(np.array(state))
            if progress.coefficients:  # Runs of earlier versions have none.
                names = _coefficients(model)
                for (owner, name), value in zip(names, progress.coefficients, strict=True):
                    setattr(owner, name, value)
        except Exception as error:
            raise unusable(self._state, error) from error

    def save_best(self, model: Any) -> None:
        """Write `model.keras`."""
        self._replace(self._best, model.save)

    def save_last(self, model: Any, progress: Progress) -> None:
        """Make `progress` the state that a resumed run goes on from."""
        if self._writes:
            self._checkpoints.mkdir(exist_ok=True)
        progress.random_states = [state.numpy().tolist() for state in _seed_states(model)]
        progress.coefficients = coefficients_of(model)
        weights = self._checkpoints / weights_name(progress.epochs_done)
        self._replace(weights, model.save_weights)
        progress.checksum = checksum(model)
        self._write_json(self._state, {"weights": weights.name, **dataclasses.asdict(progress)})
        self._write_json(self._history, progress.history)
        if not self._writes:
            return
        for other in self._checkpoints.glob("epoch-*.weights.h5"):
            if other != weights:
                other.unlink(missing_ok=True)

    def _replace(self, path: Path, write: Callable[[str], Any]) -> None:
        if self._writes:
            _replace(path, write)
            return
        with tempfile.TemporaryDirectory() as folder:
            write(os.path.join(folder, path.name))

    def _write_json(self, path: Path, content: dict[str, Any]) -> None:
        if self._writes:
            _write_json(path, content)


def _seed_states(model: Any) -> list[Any]:
    known = {id(variable) for variable in (*model.weights, *model.metrics_variables)}
    return [variable for variable in model.variables if id(variable) not in known]


def coefficients_of(model: Any) -> list[float]:
    """Return the coefficients of a model's regularizers and penalties, as they are now."""
    return [getattr(owner, name) for owner, name in _coefficients(model)]


def _coefficients(model: Any) -> list[tuple[Any, str]]:
    """Return whose coefficients a run may change, and their names, in the order of the weights."""
    owners = {
        id(owner): owner
        for owner in (
            *(getattr(variable, "regularizer", None) for variable in model.variables),
            *penalties_of(model),
        )
        if isinstance(owner, HasCoefficients)
    }
    return [(owner, name) for owner in owners.values() for name in owner.coefficients()]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=1, default=lambda value: np.asarray(value).tolist())
    _replace(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))


def _replace(path: Path, write: Callable[[str], Any]) -> None:
    # Keras reads a file's kind off its ending, so the temporary name keeps it.
    temporary = path.with_name(f"{_WRITING}{os.getpid()}-{path.name}")
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
