"""The run record: what a run leaves on disk, as JSON lines, one schema with a version.

A record is the file `record.jsonl` of a run directory. Every line is one JSON object with a `kind`:

| kind | fields |
|---|---|
| `run` | `schema`, `started`, `versions`, `variables`, `layers` and `trained_layers` (names, in the order of every per-variable, per-layer and per-trained-layer list), `config` |
| `step` | `step`, `scalars` (name to number), on sampled steps `per_variable`, `per_layer` and `per_trained_layer` (name to list) |
| `event` | `step`, `event` (`skip`, `clip`, `stop`, ...), `details` |
| `finding` | `step`, `finding`, `details` |

The first line is a `run`. A resumed run appends its own; where its steps begin before the end of
what is there, they replace it from that step on, events too, as the resumed run did. Numbers that JSON lacks
are the strings `"nan"`, `"inf"` and `"-inf"`. This module imports neither Keras nor TensorFlow, so
that a record can be read at once and where neither is installed.
"""  # noqa: E501  a table row can't be broken

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import warnings
from pathlib import Path
from typing import Any, Final, TypeGuard

import numpy as np

from gradstab import __version__

SCHEMA: Final = 1
# Events with which a run ends; anything after one, such as a resumed run, takes it back.
ENDS: Final = ("stop", "end")
FILE_NAME: Final = "record.jsonl"
_NONFINITE: Final = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}

# Lists in a step, and the field of the header that names their entries.
_LISTS: Final = {
    "per_variable": "variables",
    "per_layer": "layers",
    "per_trained_layer": "trained_layers",
}

# Of a file that holds more names than any run has, those beyond are left out: there would be a
# column over all steps for each.
_MOST_NAMES: Final = 500
# Entries of a table of steps and variables up to which runs with other variables stand in one.
_MOST_ENTRIES: Final = 20_000_000

_Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that happened in a run, or a finding.

    Attributes:
        name: What: `skip`, `clip`, `stop`, ...
        step: Number of the step, or `None` where it belongs to none.
        details: What else the record tells, such as `cause` and `variable`. A number that is not
            finite stands there as the string that the file holds.
    """

    name: str
    step: int | None
    details: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class PerVariable:
    """One quantity for each variable, or for each layer, on the sampled steps.

    Attributes:
        steps: Numbers of the sampled steps, shape (samples,).
        names: Names of the variables or layers.
        values: Shape (samples, variables); NaN where the run did not have that variable.
    """

    steps: _Array
    names: tuple[str, ...]
    values: _Array


@dataclasses.dataclass(frozen=True)
class Record:
    """A run record that was read.

    Attributes:
        path: The file.
        runs: The headers, oldest first; a resumed run has more than one.
        steps: Numbers of the steps, rising, shape (steps,).
        columns: The scalars by name, each of shape (steps,), NaN where a step has no such scalar.
        events: What happened, in the order in which it was written.
        findings: What a diagnosis found.
        problems: Lines that could not be read, as `"line 17: not JSON"`.
    """

    path: Path
    runs: tuple[dict[str, Any], ...]
    steps: _Array
    columns: dict[str, _Array]
    events: tuple[Event, ...]
    findings: tuple[Event, ...]
    problems: tuple[str, ...]
    _samples: dict[str, PerVariable] = dataclasses.field(repr=False)
    _layer_samples: dict[str, PerVariable] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def header(self) -> dict[str, Any]:
        """Header of the latest run: `schema`, `started`, `versions`, `variables`, `config`."""
        return self.runs[-1]

    @property
    def norms(self) -> PerVariable:
        """Gradient norm of each variable before the transforms, on the sampled steps."""
        return self.per_variable("grad_norm")

    def column(self, name: str) -> _Array:
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
    """Read a run record, finished, killed or still growing.

    A line torn by a kill is passed over. Other lines that can't be read are passed over with a
    warning and listed in `problems`. The file is data and nothing else: nothing in it is executed.

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
    reader = _Reader(file)
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            reader.take(number, line)
    record = reader.record()
    if record.problems:
        warnings.warn(
            f"{file} has lines that could not be read: {'; '.join(record.problems[:5])}",
            stacklevel=2,
        )
    return record


class _BadLineError(Exception):
    """A line that is not what the schema says."""


class _Reader:
    """Takes lines, gives a `Record`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._runs: list[dict[str, Any]] = []
        self._events: dict[str, list[Event]] = {"event": [], "finding": []}
        self._steps: list[int] = []
        self._scalars: list[dict[str, float]] = []
        self._samples: dict[str, list[tuple[tuple[str, ...], dict[str, _Array]]]] = {
            kind: [] for kind in _LISTS
        }
        self._names: dict[str, tuple[str, ...]] = dict.fromkeys(_LISTS, ())
        self._problems: list[str] = []
        self._quantity_names: dict[str, set[str]] = {}
        self._left_out: set[str] = set()
        self._unread: int | None = None
        self._is_new = False

    def take(self, number: int, line: bytes) -> None:
        try:
            fields = _parse(line)
            kind = str(fields.get("kind"))
            if kind == "run":
                if self._unread == number - 1:
                    self._problems.pop()  # torn by a kill, and the run resumed after it
                self._take_run(fields)
            elif not self._runs:
                raise _BadLineError("comes before the header of the run")
            elif kind == "step":
                self._take_step(fields)
            elif kind in self._events:
                self._take_event(kind, fields)
            else:
                raise _BadLineError(f"unknown kind {kind!r}"[:80])
        except _BadLineError as problem:
            if line.endswith(b"\n"):
                self._unread = number
                self._problems.append(f"line {number}: {problem}")

    def record(self) -> Record:
        if not self._runs:
            raise ValueError(
                f"`path` must be a run record, whose first line is its header. Received: "
                f"path={str(self._path)!r}, {'; '.join(self._problems[:1]) or 'an empty file'}"
            )
        columns = self._columns()
        samples = {kind: self._quantities(kind) for kind in _LISTS}
        for kind in sorted(self._left_out):
            self._problems.append(f"`{kind}` of more than {_MOST_NAMES} names: the others left out")
        return Record(
            path=self._path,
            runs=tuple(self._runs),
            steps=np.array(self._steps, "int64"),
            columns=columns,
            events=tuple(self._events["event"]),
            findings=tuple(self._events["finding"]),
            problems=tuple(self._problems),
            _samples=samples["per_variable"],
            _layer_samples=samples["per_layer"] | samples["per_trained_layer"],
        )

    def _columns(self) -> dict[str, _Array]:
        columns: dict[str, _Array] = {}
        for place, scalars in enumerate(self._scalars):
            for name, value in scalars.items():
                column = columns.get(name)
                if column is None:
                    column = columns[name] = np.full(len(self._steps), math.nan)
                column[place] = value
        return columns

    def _quantities(self, kind: str) -> dict[str, PerVariable]:
        rows: dict[str, list[tuple[int, tuple[str, ...], _Array]]] = {}
        for step, (names, sample) in zip(self._steps, self._samples[kind], strict=True):
            for quantity, values in sample.items():
                rows.setdefault(quantity, []).append((step, names, values))
        return {quantity: self._together(each) for quantity, each in rows.items()}

    def _known(self, values: dict[str, Any], kind: str) -> dict[str, Any]:
        """Return the values by name, without names beyond those that a record may have."""
        known = self._quantity_names.setdefault(kind, set())
        for name in values:
            if name not in known and len(known) >= _MOST_NAMES:
                self._left_out.add(kind)
                values = {name: value for name, value in values.items() if name in known}
                break
            known.add(name)
        return values

    def _take_run(self, fields: dict[str, Any]) -> None:
        schema = fields.get("schema")
        if not _is_int(schema):
            raise _BadLineError("a header without a schema version")
        if schema > SCHEMA:
            raise ValueError(
                f"{self._path} was written by a newer gradstab: its schema version is {schema}, "
                f"and gradstab {__version__} reads up to {SCHEMA}. Update gradstab"
            )
        for kind, field in _LISTS.items():
            names = fields.get(field, None if field == "variables" else [])
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise _BadLineError(f"a header whose `{field}` are not a list of names")
            self._names[kind] = tuple(names)
        self._is_new = True
        header: dict[str, Any] = {"started": "", "versions": {}, "config": {}}
        for name, default in list(header.items()):
            # What is something else tells nothing.
            if isinstance(fields.get(name), type(default)):
                header[name] = fields[name]
        others = {name: fields[name] for name in fields if name not in ("kind", *header)}
        self._runs.append(header | others)

    def _take_step(self, fields: dict[str, Any]) -> None:
        step = fields.get("step")
        if not _is_int(step):
            raise _BadLineError("a step without a number")
        self._replace_from(step)
        scalars = {name: _number(value) for name, value in _mapping(fields, "scalars").items()}
        scalars = self._known(scalars, "scalars")
        samples = {}
        for kind in _LISTS:
            count = len(self._names[kind])
            lists = _mapping(fields, kind)
            samples[kind] = self._known(
                {name: _numbers(values, count) for name, values in lists.items()}, kind
            )
        while self._steps and self._steps[-1] >= step:
            self._steps.pop()
            self._scalars.pop()
            for rows in self._samples.values():
                rows.pop()
        self._steps.append(step)
        self._scalars.append(scalars)
        for kind, sample in samples.items():
            self._samples[kind].append((self._names[kind], sample))

    def _take_event(self, kind: str, fields: dict[str, Any]) -> None:
        name, step = fields.get(kind), fields.get("step")
        if not isinstance(name, str) or not (step is None or _is_int(step)):
            raise _BadLineError(f"{kind} needs a name and, if any, a whole number as its step")
        details = _mapping(fields, "details")
        if step and name not in ENDS:
            self._replace_from(step)
        self._events[kind].append(Event(name, step, details))

    def _replace_from(self, step: int) -> None:
        """Forget what earlier runs did from the step on at which a new one began."""
        if self._is_new:
            self._is_new = False
            for kind, events in self._events.items():
                self._events[kind] = [e for e in events if e.step is None or e.step < step]

    def _together(self, rows: list[tuple[int, tuple[str, ...], _Array]]) -> PerVariable:
        if len(rows) * len({name for _, names, _ in rows for name in names}) > _MOST_ENTRIES:
            rows = [row for row in rows if row[1] == rows[-1][1]]
        # A run that was resumed with other variables has a column for each of all of them.
        together = tuple(
            dict.fromkeys(name for names in {row[1]: 0 for row in rows} for name in names)
        )
        places = {name: place for place, name in enumerate(together)}
        values = np.full((len(rows), len(together)), math.nan)
        for row, (_, names, sample) in enumerate(rows):
            values[row, [places[name] for name in names]] = sample
        return PerVariable(np.array([step for step, _, _ in rows], "int64"), together, values)


def _numbers(values: Any, count: int) -> _Array:
    if not isinstance(values, list) or len(values) != count:
        raise _BadLineError(f"needs lists of {count} numbers, one for each name in the header")
    if all(type(value) is float or type(value) is int for value in values):
        with contextlib.suppress(OverflowError):
            return np.array(values, "float64")
    return np.array([_number(value) for value in values], "float64")


def _parse(line: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        fields = json.loads(line.decode(), parse_constant=refuse)
    except (ValueError, RecursionError):
        raise _BadLineError("not JSON") from None
    if not isinstance(fields, dict):
        raise _BadLineError("not a JSON object")
    return fields


def _mapping(fields: dict[str, Any], name: str) -> dict[str, Any]:
    mapping = fields.get(name, {})
    if not isinstance(mapping, dict):
        raise _BadLineError(f"`{name}` is not an object")
    return mapping


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _number(value: Any) -> float:
    if isinstance(value, float):
        return value
    if isinstance(value, str) and value in _NONFINITE:
        return _NONFINITE[value]
    if isinstance(value, int) and abs(value) < 2**63:
        return float(value)
    raise _BadLineError(f"needs numbers, not {value!r}"[:80])
