"""The run directory: what a run leaves on disk, loadable whenever the run is killed.

`config.json`, `history.json`, `model.keras` (the best so far) and `checkpoints/` (the last state
and the one before). Every file is written under a temporary name and renamed.
`checkpoints/state.json` names the weights that belong to it, so its renaming is the one moment at
which an epoch counts as done, or a part of one. `checkpoints/before.json` is the same of the state
before, which serves if a file of the last one is lost or broken.
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
from gradstab.training.callback_state import put_back, state_of
from gradstab.training.files import WRITING, checksum, replace, write_json
from gradstab.training.leftovers import (
    STATE,
    STATE_BEFORE,
    Progress,
    arrays_name,
    holds_a_run,
    read_arrays,
    read_run,
    unusable,
    weights_name,
)
from gradstab.training.lock import locked
from gradstab.training.penalized import metrics_of_penalties, penalties_of


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
        self._state = self._checkpoints / STATE
        self._before = self._checkpoints / STATE_BEFORE
        self._trusted: str | None = None

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
        self._trusted = progress.checksum
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
                for leftover in folder.glob(f"{WRITING}*"):
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
        weights = self._checkpoints / weights_name(progress.epochs_done, progress.step)
        try:
            model.load_weights(weights)
        except Exception as error:  # of h5py and Keras, in as many ways as a file can be wrong
            raise unusable(weights, error) from error
        try:
            for variable, state in zip(_seed_states(model), progress.random_states, strict=True):
                variable.assign(np.array(state))
            if progress.coefficients:  # Runs of earlier versions have none.
                names = _coefficients(model)
                for (owner, name), value in zip(names, progress.coefficients, strict=True):
                    setattr(owner, name, value)
            if progress.step:
                for metric, value in zip(_metrics(model), progress.metrics, strict=True):
                    metric.assign(np.array(value, metric.dtype))
        except Exception as error:
            raise unusable(self._state, error) from error

    def restore_callbacks(self, callbacks: Any, progress: Progress) -> None:
        """Have callbacks go on from what they knew when `progress` was made."""
        put_back(callbacks, progress.callbacks, read_arrays(self._checkpoints, progress))

    def save_best(self, model: Any) -> None:
        """Write `model.keras`."""
        self._replace(self._best, model.save)

    def save_last(self, model: Any, progress: Progress, callbacks: Any) -> None:
        """Make `progress` the state that a resumed run goes on from, and keep the one before."""
        if self._writes:
            self._checkpoints.mkdir(exist_ok=True)
        progress.random_states = [state.numpy().tolist() for state in _seed_states(model)]
        progress.coefficients = coefficients_of(model)
        progress.metrics = [m.numpy().tolist() for m in _metrics(model) if progress.step]
        weights = self._checkpoints / weights_name(progress.epochs_done, progress.step)
        self._replace(weights, model.save_weights)
        progress.callbacks, arrays = state_of(callbacks)
        if arrays:
            self._replace(self._checkpoints / arrays_name(progress), _saving(arrays))
        if not self._writes:
            return
        progress.checksum = checksum(weights)
        # One that was found broken gives way, and the one before stays.
        if self._trusted is not None and _checksum_in(self._state) == self._trusted:
            content = self._state.read_bytes()
            replace(self._before, lambda temporary: Path(temporary).write_bytes(content))
        write_json(self._state, {"weights": weights.name, **dataclasses.asdict(progress)})
        write_json(self._history, progress.history)
        self._trusted = progress.checksum
        self._remove_what_no_state_names()

    def _remove_what_no_state_names(self) -> None:
        told = b"".join(file.read_bytes() for file in (self._state, self._before) if file.exists())
        for other in self._checkpoints.glob("epoch-*"):
            if f"{other.name.partition('.')[0]}.weights.h5".encode() not in told:
                other.unlink(missing_ok=True)

    def _replace(self, path: Path, write: Callable[[str], Any]) -> None:
        if self._writes:
            replace(path, write)
            return
        with tempfile.TemporaryDirectory() as folder:
            write(os.path.join(folder, path.name))

    def _write_json(self, path: Path, content: dict[str, Any]) -> None:
        if self._writes:
            write_json(path, content)


def _seed_states(model: Any) -> list[Any]:
    known = {id(variable) for variable in (*model.weights, *model.metrics_variables)}
    return [variable for variable in model.variables if id(variable) not in known]


def _metrics(model: Any) -> list[Any]:
    return [*model.metrics_variables, *metrics_of_penalties(model)]


def _checksum_in(state: Path) -> Any:
    try:
        return json.loads(state.read_text("utf-8")).get("checksum")
    except (OSError, ValueError, AttributeError):
        return None


def _saving(arrays: dict[str, Any]) -> Callable[[str], None]:
    def save(path: str) -> None:
        with open(path, "wb") as file:
            np.savez(file, **arrays)

    return save


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
