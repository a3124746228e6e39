"""Writes a run record (`gradstab.monitoring.record` says what one is) so that no kill spoils it."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import math
import numbers
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from gradstab import __version__
from gradstab._validation import check_int
from gradstab.monitoring.entries import Totals
from gradstab.monitoring.record import FILE_NAME, SCHEMA

_LIBRARIES: Final = ("tensorflow", "tensorflow-cpu", "keras", "numpy")


class RecordWriter:
    """Appends to a run record, one whole line per write.

    Every line reaches the operating system before the call returns, so a killed run leaves a
    readable record. Opening an existing record appends to it, also after a line torn by a kill.

    Args:
        path: A run directory, or a file whose name ends in `.jsonl`. Folders are created.
        variables: Names (paths) of the trainable variables, in the order of per-variable lists.
        layers: Names of the layers, in the order of per-layer lists.
        trained_layers: Names of the layers with trainable variables, in the order of
            per-trained-layer lists.
        config: Further description of the run; any JSON value.
        after_step: Steps that were counted before this run began.
        resumes: Whether this run resumes the latest one in the file. Not needed if that one has no
            end and its steps are counted on.

    Raises:
        OSError: If the file can't be created or written.
        ValueError: If the path is a folder.
        TypeError: If JSON can't represent `config`.

    Example:
        >>> import tempfile
        >>> from gradstab.monitoring import RecordWriter, read_record
        >>> with tempfile.TemporaryDirectory() as run_dir:
        ...     with RecordWriter(run_dir, variables=["dense/kernel"]) as writer:
        ...         writer.step(1, {"loss": 2.3}, per_variable={"grad_norm": [0.25]})
        ...         writer.step(2, {"loss": float("nan")})
        ...         writer.event("skip", step=2, cause="nonfinite", variable="dense/kernel")
        ...     record = read_record(run_dir)
        >>> record.column("loss")
        array([2.3, nan])
        >>> record.events[0].details["cause"]
        'nonfinite'
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        variables: Sequence[str] = (),
        layers: Sequence[str] = (),
        trained_layers: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        after_step: int | None = None,
        resumes: bool = False,
    ) -> None:
        self.path = Path(path)
        if self.path.suffix != ".jsonl":
            self.path /= FILE_NAME
        named = {"layers": layers, "trained_layers": trained_layers}
        self._lengths = {"per_variable": len(variables)} | {
            f"per_{kind[:-1]}": len(names) for kind, names in named.items()
        }
        header = {
            "schema": SCHEMA,
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": _versions(),
            "variables": [str(name) for name in variables],
            **{kind: [str(name) for name in names] for kind, names in named.items() if names},
            "config": dict(config or {}),
            **({} if after_step is None else {"after_step": after_step}),
            **({"resumes": True} if resumes else {}),
        }
        line = _encode_line("run", header)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_dir():
            raise ValueError(f"{self.path} must be a file for the run record. Move the folder away")
        self._torn = _ends_torn(self.path)
        self._file = self.path.open("ab", buffering=0)
        self._write(line)

    def step(
        self,
        step: int,
        scalars: Mapping[str, float],
        per_variable: Mapping[str, Sequence[float] | np.ndarray[Any, Any]] | None = None,
        per_layer: Mapping[str, Sequence[float] | np.ndarray[Any, Any]] | None = None,
        per_trained_layer: Mapping[str, Sequence[float] | np.ndarray[Any, Any]] | None = None,
    ) -> None:
        """Write one step.

        Args:
            step: Number of the step, from 1, skipped ones counted.
            scalars: Numbers of this step by name, kept to 7 digits (integers whole).
            per_variable: On sampled steps, lists with one number per variable by name, kept to 5
                digits. `grad_norm` is the gradient norm before the transforms.
            per_layer: The same with one number per layer.
            per_trained_layer: The same with one number per trained layer.

        Raises:
            ValueError: If a list does not have one number per name.
        """
        fields: dict[str, Any] = {
            "step": check_int("step", step, minimum=0),
            "scalars": {name: _round(value, 7) for name, value in scalars.items()},
        }
        line = _encode_line("step", fields).rstrip(b"}\n") + b"}"  # The scalars end here.
        kinds = zip(self._lengths, (per_variable, per_layer, per_trained_layer), strict=True)
        for kind, lists in kinds:
            for name, values in (lists or {}).items():
                if len(values) != self._lengths[kind]:
                    raise ValueError(
                        f"`{kind}` must hold one number for each of the {self._lengths[kind]} "
                        f"{kind[4:].replace('_', ' ')}s. Received: {len(values)} for {name!r}"
                    )
            if lists:
                entries = (f"{json.dumps(str(name))}:{_list(lists[name])}" for name in lists)
                line += f',"{kind}":{{{",".join(entries)}}}'.encode()
        self._write(line + b"}\n")

    def event(self, event: str, *, step: int | None = None, **details: Any) -> None:
        """Write an event.

        Args:
            event: Kind of the event: `"skip"`, `"clip"` (a bound changed), `"stop"`, ...
            step: Number of the step of the event.
            details: Further fields, such as `cause`, `variable`, `message`.
        """
        self._write(_encode_line("event", {"step": step, "event": event, "details": details}))

    def finding(self, finding: str, *, step: int | None = None, **details: Any) -> None:
        """Write a finding of a diagnosis.

        Args:
            finding: Code of the rule.
            step: Number of the step, or `None` if it belongs to no step.
            details: Further fields, such as `severity`, `layer`, `message`.
        """
        self._write(_encode_line("finding", {"step": step, "finding": finding, "details": details}))

    def epoch(self, epoch: int, *, step: int, logs: Mapping[str, float]) -> None:
        """Write a completed epoch.

        Args:
            epoch: Its number, from 1.
            step: Number of its last step.
            logs: Losses and metrics; values that are not numbers are left out.
        """
        numbers_of = {
            name: _round(value, 7)
            for name, value in logs.items()
            if isinstance(value, numbers.Real | np.bool_) or getattr(value, "shape", None) == ()
        }
        self._write(_encode_line("epoch", {"epoch": epoch, "step": step, "logs": numbers_of}))

    def totals(self, totals: Totals, *, step: int) -> None:
        """Write counts and extremes over every step so far; later ones replace them.

        Args:
            totals: The totals of this run since it began or was resumed.
            step: Number of the last step that they hold.
        """
        fields = {"step": step, "totals": dataclasses.asdict(totals)}
        self._write(_encode_line("totals", fields))

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _write(self, line: bytes) -> None:
        rest = memoryview(b"\n" + line if self._torn else line)
        # Stays set if the disk is full half-way through, so that the next line begins a new one.
        self._torn = True
        while rest:
            rest = rest[self._file.write(rest) :]
        self._torn = False


def _versions() -> dict[str, str]:
    versions = {"gradstab": __version__, "python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _ends_torn(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _encode_line(kind: str, fields: Mapping[str, Any]) -> bytes:
    encoded = {"kind": kind, **_encode(fields)}
    return (json.dumps(encoded, allow_nan=False, separators=(",", ":")) + "\n").encode()


def _encode(value: Any) -> Any:
    """Return `value` as strict JSON can hold it."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _encode(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(entry) for entry in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(
        "a run record must be made of numbers, strings, booleans, None, lists and mappings. "
        f"Received: {value!r} of type {type(value).__name__}"
    )


def _round(value: Any, digits: int) -> float:
    if isinstance(value, numbers.Integral | np.bool_):
        return int(value)
    return float(f"{float(value):.{digits}g}")


def _list(values: Any) -> str:
    """Return a list of numbers with 5 digits as JSON.

    There are thousands of numbers in a sample, so that they are not encoded one by one.
    """
    numbers = np.asarray(values, "float64").tolist()
    if all(map(math.isfinite, numbers)):
        text = "%.5g," * len(numbers) % tuple(numbers)
    else:
        texts = (("%.5g," if math.isfinite(number) else '"%s",') % number for number in numbers)
        text = "".join(texts)
    return f"[{text[:-1]}]"
