"""Takes the lines of a record one by one and sorts them into runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import numpy as np

from gradstab import __version__
from gradstab.monitoring.entries import ENDS, Array, Epoch, Event, PerVariable, Totals
from gradstab.monitoring.lines import (
    BadLineError,
    count,
    is_count,
    mapping,
    number,
    numbers,
    parse,
    totals,
)

SCHEMA: Final = 1
# Lists in a step, and the field of the header that names their entries.
LISTS: Final = {
    "per_variable": "variables",
    "per_layer": "layers",
    "per_trained_layer": "trained_layers",
}
# Of a file that holds more names than any run has, those beyond are left out: there would be a
# column over all steps for each.
_MOST_NAMES: Final = 500
# Entries of a table of steps and variables up to which runs with other variables stand in one.
_MOST_ENTRIES: Final = 20_000_000


class RunLines:
    """What the lines of one run hold, those of its continuations included.

    Attributes:
        headers: Headers, oldest first; a resumed run has more than one.
        events: Events and findings by kind.
        epochs: Completed epochs.
        steps: Numbers of the steps.
    """

    def __init__(self) -> None:
        self.headers: list[dict[str, Any]] = []
        self.events: dict[str, list[Event]] = {"event": [], "finding": []}
        self.epochs: list[Epoch] = []
        self.steps: list[int] = []
        self._scalars: list[dict[str, float]] = []
        self._samples: dict[str, list[tuple[tuple[str, ...], dict[str, Array]]]] = {
            kind: [] for kind in LISTS
        }
        self._totals: list[list[tuple[int, Totals]]] = []
        self._names: dict[str, set[str]] = {}
        self.left_out: set[str] = set()

    @property
    def has_ended(self) -> bool:
        """Whether the run has written its end."""
        return any(event.name in ENDS for event in self.events["event"])

    @property
    def totals(self) -> Totals | None:
        """Totals over all parts of the run; `None` where it told none."""
        told = [part[-1][1] for part in self._totals if part]
        if not told:
            return None
        together = told[0]
        for later in told[1:]:
            together = together.then(later)
        return together

    def begin(self, header: dict[str, Any], first_step: int | None) -> None:
        """Take a header, and forget what an earlier part did from this part's first step on."""
        self.headers.append(header)
        if not self._totals or self._totals[-1]:
            self._totals.append([])
        if first_step is None:
            return
        for kind, events in self.events.items():
            self.events[kind] = [
                event
                for event in events
                if event.name not in ENDS and (event.step is None or event.step < first_step)
            ]
        self.epochs = [epoch for epoch in self.epochs if epoch.step < first_step]
        for place, told in enumerate(self._totals):
            self._totals[place] = [(step, each) for step, each in told if step < first_step]

    def take_step(self, fields: dict[str, Any], names: dict[str, tuple[str, ...]]) -> None:
        """Take a step; one that is repeated replaces those from there on."""
        step = count(fields, "step", "a step without a number")
        scalars = {name: number(value) for name, value in mapping(fields, "scalars").items()}
        scalars = self._known(scalars, "scalars")
        samples = {}
        for kind in LISTS:
            length = len(names[kind])
            lists = mapping(fields, kind)
            samples[kind] = self._known(
                {name: numbers(values, length) for name, values in lists.items()}, kind
            )
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
            self._scalars.pop()
            for rows in self._samples.values():
                rows.pop()
        self.steps.append(step)
        self._scalars.append(scalars)
        for kind, sample in samples.items():
            self._samples[kind].append((names[kind], sample))

    def take_event(self, kind: str, fields: dict[str, Any]) -> None:
        """Take an event or a finding."""
        name, step = fields.get(kind), fields.get("step")
        if not isinstance(name, str) or not (step is None or is_count(step)):
            raise BadLineError(f"{kind} needs a name and, if any, a whole number as its step")
        self.events[kind].append(Event(name, step, mapping(fields, "details")))

    def take_epoch(self, fields: dict[str, Any]) -> None:
        """Take a completed epoch."""
        problem = "an epoch without its number and its last step"
        logs = {name: number(value) for name, value in mapping(fields, "logs").items()}
        epoch, step = count(fields, "epoch", problem), count(fields, "step", problem)
        self.epochs.append(Epoch(epoch, step, self._known(logs, "logs")))

    def take_totals(self, fields: dict[str, Any]) -> None:
        """Take totals, which those after them replace."""
        step = count(fields, "step", "totals without a step")
        self._totals[-1].append((step, totals(fields)))

    def columns(self) -> dict[str, Array]:
        """Return the scalars of all steps by name."""
        columns: dict[str, Array] = {}
        for place, scalars in enumerate(self._scalars):
            for name, value in scalars.items():
                column = columns.get(name)
                if column is None:
                    column = columns[name] = np.full(len(self.steps), math.nan)
                column[place] = value
        return columns

    def quantities(self, kind: str) -> dict[str, PerVariable]:
        """Return the lists of one kind by quantity."""
        rows: dict[str, list[tuple[int, tuple[str, ...], Array]]] = {}
        for step, (names, sample) in zip(self.steps, self._samples[kind], strict=True):
            for quantity, values in sample.items():
                rows.setdefault(quantity, []).append((step, names, values))
        return {quantity: _together(each) for quantity, each in rows.items()}

    def _known(self, values: dict[str, Any], kind: str) -> dict[str, Any]:
        """Return the values by name, without names beyond those that a record may have."""
        known = self._names.setdefault(kind, set())
        for name in values:
            if name not in known and len(known) >= _MOST_NAMES:
                self.left_out.add(kind)
                values = {name: value for name, value in values.items() if name in known}
                break
            known.add(name)
        return values


class Reader:
    """Takes lines, gives the runs that they tell of.

    A header begins a new run, unless it says that it resumes one, or the run before it has no end
    and this one goes on counting its steps, as after a kill.

    Args:
        path: The file, for messages.

    Attributes:
        runs: The runs, oldest first.
        problems: Lines that could not be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.runs: list[RunLines] = []
        self.problems: list[str] = []
        self._names: dict[str, tuple[str, ...]] = dict.fromkeys(LISTS, ())
        self._header: dict[str, Any] | None = None
        self._unread: int | None = None

    def take(self, place: int, line: bytes) -> None:
        """Take line number `place`."""
        try:
            fields = parse(line)
            kind = str(fields.get("kind"))
            if kind == "run":
                if self._unread == place - 1:
                    self.problems.pop()  # torn by a kill, and the run resumed after it
                self._take_header(fields)
            elif self._header is None and not self.runs:
                raise BadLineError("comes before the header of the run")
            elif kind == "step":
                self._run(fields).take_step(fields, self._names)
            elif kind in ("event", "finding"):
                self._run(fields).take_event(kind, fields)
            elif kind == "epoch":
                self._run(fields).take_epoch(fields)
            elif kind == "totals":
                self._run(fields).take_totals(fields)
            else:
                raise BadLineError(f"unknown kind {kind!r}"[:80])
        except BadLineError as problem:
            if line.endswith(b"\n"):
                self._unread = place
                self.problems.append(f"line {place}: {problem}")

    def finish(self) -> list[RunLines]:
        """Return the runs, the last one too if it has no line but its header."""
        if self._header is not None:
            self._begin(None)
        return self.runs

    def _take_header(self, fields: dict[str, Any]) -> None:
        schema = fields.get("schema")
        if not is_count(schema):
            raise BadLineError("a header without a schema version")
        if schema > SCHEMA:
            raise ValueError(
                f"{self._path} was written by a newer gradstab: its schema version is {schema}, "
                f"and gradstab {__version__} reads up to {SCHEMA}. Update gradstab"
            )
        names = {}
        for kind, field in LISTS.items():
            given = fields.get(field, None if field == "variables" else [])
            if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
                raise BadLineError(f"a header whose `{field}` are not a list of names")
            names[kind] = tuple(given)
        if self._header is not None:
            self._begin(None)
        self._names = names
        header: dict[str, Any] = {"started": "", "versions": {}, "config": {}}
        for name, default in list(header.items()):
            # What is something else tells nothing.
            if isinstance(fields.get(name), type(default)):
                header[name] = fields[name]
        others = {name: fields[name] for name in fields if name not in ("kind", *header)}
        self._header = header | others

    def _run(self, fields: dict[str, Any]) -> RunLines:
        """Return the run that a line belongs to; the first line after a header decides."""
        if self._header is not None:
            step = fields.get("step")
            self._begin(step if is_count(step) else None)
        return self.runs[-1]

    def _begin(self, first_step: int | None) -> None:
        header, self._header = self._header or {}, None
        before = header.get("after_step")
        if is_count(before) and before:
            first_step = before + 1
        resumes = header.get("resumes") is True
        goes_on = first_step is not None and first_step > 1
        if not self.runs or not (resumes or (goes_on and not self.runs[-1].has_ended)):
            self.runs.append(RunLines())
        self.runs[-1].begin(header, first_step)


def _together(rows: list[tuple[int, tuple[str, ...], Array]]) -> PerVariable:
    if len(rows) * len({name for _, names, _ in rows for name in names}) > _MOST_ENTRIES:
        rows = [row for row in rows if row[1] == rows[-1][1]]
    # A run that was resumed with other variables has a column for each of all of them.
    together = tuple(dict.fromkeys(name for names in {row[1]: 0 for row in rows} for name in names))
    places = {name: place for place, name in enumerate(together)}
    values = np.full((len(rows), len(together)), math.nan)
    for row, (_, names, sample) in enumerate(rows):
        values[row, [places[name] for name in names]] = sample
    return PerVariable(np.array([step for step, _, _ in rows], "int64"), together, values)
