"""The run record, a file of JSON lines with a versioned schema.

A record is the file `record.jsonl` of a run directory. Every line is one JSON object with a `kind`:

| kind | fields |
|---|---|
| `run` | `schema`, `started`, `versions`, `variables`, `layers` and `trained_layers` (names, in the order of every per-variable, per-layer and per-trained-layer list), `config`, `after_step` (steps counted before it), `resumes` |
| `step` | `step`, `scalars` (name to number), on sampled steps `per_variable`, `per_layer` and `per_trained_layer` (name to list) |
| `epoch` | `epoch`, `step`, `logs` (name to number) |
| `totals` | `step`, `totals` (counts and extremes over every step so far, sampled or not) |
| `event` | `step`, `event` (`skip`, `clip`, `stop`, ...), `details` |
| `finding` | `step`, `finding`, `details` |

The first line is a `run`. Each `run` line begins another run, unless the run before it goes on:
`resumes` is true, or that run has no end and the steps are counted on, as after a kill. Where the
steps of a continuation begin before the end of what is there, they replace it from that step on.
Numbers that JSON lacks are the strings `"nan"`, `"inf"` and `"-inf"`. This module imports neither
Keras nor TensorFlow, so that a record can be read at once and where neither is installed.
"""  # noqa: E501  a table row can't be broken

from __future__ import annotations

import dataclasses
import os
import warnings
from pathlib import Path
from typing import Any, Final

import numpy as np

from gradstab.monitoring.entries import ENDS, Array, Epoch, Event, PerVariable, Totals
from gradstab.monitoring.reader import LISTS, SCHEMA, Reader, RunLines

__all__ = [
    "ENDS",
    "FILE_NAME",
    "SCHEMA",
    "Epoch",
    "Event",
    "PerVariable",
    "Record",
    "Totals",
    "read_record",
]

FILE_NAME: Final = "record.jsonl"


@dataclasses.dataclass(frozen=True)
class Record:
    """One run in a record that was read.

    Attributes:
        path: The file.
        runs: The headers of this run, oldest first; a resumed run has more than one.
        steps: Numbers of the steps, rising, shape (steps,).
        columns: Scalars by name, each of shape (steps,), NaN where a step has no such scalar.
        events: Events in the order in which they were written.
        findings: Findings of a diagnosis.
        problems: Lines that could not be read, as `"line 17: not JSON"`.
        epochs: Completed epochs with their losses and metrics.
        totals: Counts and extremes over every step; `None` in a record without them.
        earlier: The runs before this one in the same file, oldest first.
    """

    path: Path
    runs: tuple[dict[str, Any], ...]
    steps: Array
    columns: dict[str, Array]
    events: tuple[Event, ...]
    findings: tuple[Event, ...]
    problems: tuple[str, ...]
    _samples: dict[str, PerVariable] = dataclasses.field(repr=False)
    _layer_samples: dict[str, PerVariable] = dataclasses.field(default_factory=dict, repr=False)
    epochs: tuple[Epoch, ...] = ()
    totals: Totals | None = None
    earlier: tuple[Record, ...] = dataclasses.field(default=(), repr=False)

    @property
    def header(self) -> dict[str, Any]:
        """Latest header: `schema`, `started`, `versions`, `variables`, `config`."""
        return self.runs[-1]

    @property
    def norms(self) -> PerVariable:
        """Gradient norm of each variable before the transforms, on the sampled steps."""
        return self.per_variable("grad_norm")

    def column(self, name: str) -> Array:
        """Return a scalar over all steps.

        Raises:
            ValueError: If no step has it.
        """
        if name not in self.columns:
            raise ValueError(
                f"`name` must be a column of {self.path}: {', '.join(self.columns) or 'none'}. "
                f"Received: name={name!r}"
            )
        return self.columns[name]

    def per_variable(self, name: str) -> PerVariable:
        """Return a per-variable quantity; without samples if no step has it."""
        return self._samples.get(name, _no_samples())

    def per_layer(self, name: str) -> PerVariable:
        """Return a quantity per layer, or per trained layer; without samples if no step has it."""
        return self._layer_samples.get(name, _no_samples())


def _no_samples() -> PerVariable:
    return PerVariable(np.zeros(0, "int64"), (), np.zeros((0, 0)))


def read_record(path: str | os.PathLike[str]) -> Record:
    """Read the latest run of a record, finished, killed or still growing.

    The runs before it in the same file are in `earlier`.

    A line torn by a kill is ignored. Other lines that can't be read are skipped with a warning and
    listed in `problems`. The file is only data: nothing in it is executed.

    Args:
        path: A run directory or the file in it.

    Raises:
        FileNotFoundError: If there is no record.
        ValueError: If the file is not a run record, or was written by a newer gradstab.

    Example: see `RecordWriter`.
    """
    file = Path(path)
    if file.is_dir():
        file /= FILE_NAME
    if not file.is_file():
        raise FileNotFoundError(
            f"`path` must be a run directory with a {FILE_NAME}, or such a file. "
            f"Received: path={os.fspath(path)!r}"
        )
    reader = Reader(file)
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            reader.take(number, line)
    runs = reader.finish()
    if not runs:
        raise ValueError(
            f"`path` must be a run record, whose first line is its header. Received: "
            f"path={str(file)!r}, {'; '.join(reader.problems[:1]) or 'an empty file'}"
        )
    problems = list(reader.problems)
    for kind in sorted({kind for run in runs for kind in run.left_out}):
        problems.append(f"`{kind}` of more than 500 names: the others left out")
    earlier = tuple(_record(file, run) for run in runs[:-1])
    record = dataclasses.replace(_record(file, runs[-1]), problems=tuple(problems), earlier=earlier)
    if record.problems:
        warnings.warn(
            f"{file} has lines that could not be read: {'; '.join(record.problems[:5])}",
            stacklevel=2,
        )
    return record


def _record(file: Path, run: RunLines) -> Record:
    samples = {kind: run.quantities(kind) for kind in LISTS}
    return Record(
        path=file,
        runs=tuple(run.headers),
        steps=np.array(run.steps, "int64"),
        columns=run.columns(),
        events=tuple(run.events["event"]),
        findings=tuple(run.events["finding"]),
        problems=(),
        _samples=samples["per_variable"],
        _layer_samples=samples["per_layer"] | samples["per_trained_layer"],
        epochs=tuple(run.epochs),
        totals=run.totals,
    )
