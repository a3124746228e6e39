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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gradstab._coefficients import Adjustable
from gradstab.training.penalized import penalties_of

_WRITING = ".writing-"


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
    """

    epochs_done: int = 0
    history: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
    best_value: float | None = None
    best_epoch: int | None = None
    epochs_since_best: int = 0
    stopped: bool = False
    random_states: list[list[int]] = dataclasses.field(default_factory=list)
    coefficients: list[float] = dataclasses.field(default_factory=list)


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
            ValueError: If nothing can be written here, or a run is here that is not to be resumed.
        """
        if self._writes:
            self._check_writable()
        config, state = _read_json(self._config), _read_json(self._state)
        if (config or state) and not resume:
            raise ValueError(
                f"`run_dir` holds a run already. Received: run_dir={os.fspath(self.path)!r}. Pass "
                "`resume=True` to go on with it, or another `run_dir`"
            )
        if config and "arguments" not in config:
            raise ValueError(
                f"`run_dir` holds a file that no run wrote: {os.fspath(self._config)!r}. Pass "
                "another `run_dir`"
            )
        self._is_new = not self._best.exists()
        state.pop("weights", None)
        return config, Progress(**state)

    def begin(self, config: dict[str, Any], model: Any) -> None:
        """Write `config.json`, and for a new run the model as it begins."""
        if self._writes:
            self.path.mkdir(parents=True, exist_ok=True)
            for folder in (self.path, self._checkpoints):
                for leftover in folder.glob(f"{_WRITING}*"):
                    leftover.unlink(missing_ok=True)
        if self._is_new:
            # Also the earliest moment to learn that a model can't be saved.
            self.save_best(model)
        self._write_json(self._config, config)

    def restore(self, model: Any, progress: Progress) -> None:
        """Put the model, its optimizer and its seed generators where `progress` was made."""
        model.load_weights(self._checkpoints / _read_json(self._state)["weights"])
        for variable, state in zip(_seed_states(model), progress.random_states, strict=True):
            variable.assign(np.array(state))
        if progress.coefficients:  # Runs of earlier versions have none.
            names = _coefficients(model)
            for (owner, name), value in zip(names, progress.coefficients, strict=True):
                setattr(owner, name, value)

    def save_best(self, model: Any) -> None:
        """Write `model.keras`."""
        self._replace(self._best, model.save)

    def save_last(self, model: Any, progress: Progress) -> None:
        """Make `progress` the state that a resumed run goes on from."""
        if self._writes:
            self._checkpoints.mkdir(exist_ok=True)
        progress.random_states = [state.numpy().tolist() for state in _seed_states(model)]
        progress.coefficients = [getattr(owner, name) for owner, name in _coefficients(model)]
        weights = self._checkpoints / f"epoch-{progress.epochs_done:06d}.weights.h5"
        self._replace(weights, model.save_weights)
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

    def _check_writable(self) -> None:
        missing = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        trial = self.path / f"{_WRITING}{os.getpid()}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            trial.write_bytes(b"")
            trial.unlink()
        except OSError as error:
            raise ValueError(
                "`run_dir` must be a directory that can be written to. Received: "
                f"run_dir={os.fspath(self.path)!r} ({error.strerror or error})"
            ) from error
        finally:
            for folder in missing:
                with contextlib.suppress(OSError):
                    folder.rmdir()


def _seed_states(model: Any) -> list[Any]:
    known = {id(variable) for variable in (*model.weights, *model.metrics_variables)}
    return [variable for variable in model.variables if id(variable) not in known]


def _coefficients(model: Any) -> list[tuple[Any, str]]:
    """Return whose coefficients a run may change, and their names, in the order of the weights."""
    owners = {
        id(owner): owner
        for owner in (
            *(getattr(variable, "regularizer", None) for variable in model.variables),
            *penalties_of(model),
        )
        if isinstance(owner, Adjustable)
    }
    return [(owner, name) for owner in owners.values() for name in owner.coefficients()]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"`run_dir` holds a file that no run wrote: {os.fspath(path)!r} ({error}). Pass "
            "another `run_dir`"
        ) from error


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=1, default=lambda value: np.asarray(value).tolist())
    _replace(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))


def _replace(path: Path, write: Callable[[str], Any]) -> None:
    # Keras reads a file's kind off its ending, so the temporary name keeps it.
    temporary = path.with_name(f"{_WRITING}{os.getpid()}-{path.name}")
    try:
        write(os.fspath(temporary))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
