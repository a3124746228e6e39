"""Sinks for the monitor's readings: the interface, and the run record."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from gradstab.callbacks.sampled import Rates, Sample, each, rate_scalar, scalars_of
from gradstab.diagnosis.rules.records import diagnose_record
from gradstab.monitoring.entries import Totals
from gradstab.monitoring.record import read_record
from gradstab.monitoring.writer import RecordWriter
from gradstab.optimizers.telemetry.reading import Reading
from gradstab.optimizers.watching.effective_rate import LEVELS
from gradstab.reports.figures import plot_gradient_norm, save
from gradstab.reports.layers import plot_layer_norms


class Sink(Protocol):
    """A destination of readings."""

    def write(self, reading: Reading, rates: Rates | None = None) -> None:
        """Put down what happened, and the effective rates after the last step of the reading."""

    def event(
        self, name: str, step: int, message: str, cause: str | None = None, layer: str | None = None
    ) -> None:
        """Put down something that happened, and the layer that it is about."""

    def totals(self, totals: Totals, step: int) -> None:
        """Put down counts and extremes over every step up to `step`."""

    def end_epoch(self, epoch: int, step: int, logs: Mapping[str, Any]) -> None:
        """Put down what is due at the end of an epoch: its number from 1, last step and logs."""

    def end(self, reading: Reading, diverged: str | None, interrupted: str | None) -> None:
        """Put down the end of the run, and close.

        Args:
            reading: The last one.
            diverged: Why the run had to be stopped, or `None`.
            interrupted: Name of the exception that ended it, or `None`.
        """

    def close(self) -> None:
        """Close, without another word."""


class RecordSink:
    """Writes the run record, and draws it when the run ends.

    Args:
        run_dir: Folder for record and figures.
        every_n_steps: Steps between two entries.
        variables: Paths of the trained variables.
        layers: Names of the layers whose activations are sampled.
        trained_layers: Names of the layers whose effective rates are sampled.
        config: What describes the run.
        after_step: Steps that the optimizer had counted when the run began.
        resumes: Whether the run is the latest one in the record, resumed.
        offset: Steps before it that its numbers do not count.

    Raises:
        OSError: If the record can't be written.
    """

    def __init__(
        self,
        run_dir: Path,
        every_n_steps: int,
        variables: Sequence[str],
        layers: Sequence[str],
        trained_layers: Sequence[str],
        config: Mapping[str, Any],
        *,
        after_step: int = 0,
        resumes: bool = False,
        offset: int = 0,
    ) -> None:
        self._offset = offset
        self._run_dir = run_dir
        self._every_n_steps = every_n_steps
        self._last_written = -1
        self._writer = RecordWriter(
            run_dir,
            variables=variables,
            layers=layers,
            trained_layers=trained_layers,
            config=config,
            after_step=after_step + offset,
            resumes=resumes,
        )

    def write(self, reading: Reading, rates: Rates | None = None) -> None:
        """Write skipped steps as events, and the sampled steps with their numbers."""
        if reading.missed:
            step = reading.cursor + self._offset
            self._writer.event("missed", step=step, steps=reading.missed)
        samples = {} if reading.samples is None else dict(each(reading.samples))
        kept = set(samples) | {int(n) for n in reading.steps if n % self._every_n_steps == 0}
        if rates is not None:
            kept.add(reading.cursor)
        known = {int(number): row for row, number in enumerate(reading.steps)}
        for number in sorted(kept | set(known)):
            row = known.get(number)
            if row is not None and reading.skipped[row]:
                self._writer.event(
                    "skip",
                    step=number + self._offset,
                    cause=reading.cause[row],
                    variable=reading.bad_variable[row],
                )
            if number in kept:
                of_step = rates if number == reading.cursor else None
                self._step(number, reading, row, samples.get(number), of_step)

    def _step(
        self,
        number: int,
        reading: Reading,
        row: int | None,
        sample: Sample | None,
        rates: Rates | None = None,
    ) -> None:
        scalars = {} if row is None else scalars_of(reading, row)
        effective = {}
        if rates is not None:
            scalars |= rate_scalar(rates)
            effective = {
                f"effective_rate_{name}": rates[1][:, place] for place, name in enumerate(LEVELS)
            }
        step = number + self._offset
        if sample is None:
            self._writer.step(step, scalars, per_trained_layer=effective)
        else:
            self._writer.step(
                step, scalars | sample.scalars, sample.variables, sample.layers, effective
            )
        self._last_written = number

    def event(
        self, name: str, step: int, message: str, cause: str | None = None, layer: str | None = None
    ) -> None:
        """Write an event."""
        given = {"cause": cause, "layer": layer}
        known = {key: value for key, value in given.items() if value is not None}
        self._writer.event(name, step=step + self._offset, **known, message=message)

    def totals(self, totals: Totals, step: int) -> None:
        """Write the totals."""
        self._writer.totals(totals, step=step + self._offset)

    def end_epoch(self, epoch: int, step: int, logs: Mapping[str, Any]) -> None:
        """Write the epoch's losses and metrics."""
        self._writer.epoch(epoch, step=step + self._offset, logs=logs)

    def end(self, reading: Reading, diverged: str | None, interrupted: str | None) -> None:
        """Write the last step and how the run ended, close, and draw."""
        if len(reading.steps) and reading.steps[-1] > self._last_written:
            self._step(int(reading.steps[-1]), reading, len(reading.steps) - 1, None)
        self._diagnose()
        step = reading.cursor + self._offset
        if diverged is not None:
            self._writer.event("stop", step=step, cause="divergence", message=diverged)
        elif interrupted is not None:
            self._writer.event("stop", step=step, cause="interrupted", message=interrupted)
        else:
            self._writer.event("end", step=step)
        self._writer.close()
        self._draw()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _diagnose(self) -> None:
        """Write what the rules find in the record, for the report."""
        for finding in diagnose_record(read_record(self._run_dir)):
            if finding.is_root and finding.severity != "info":
                self._writer.finding(
                    finding.code,
                    step=None,
                    severity=finding.severity,
                    layer=finding.layer,
                    message=finding.cause,
                )

    def _draw(self) -> None:
        record = read_record(self._run_dir)
        if not len(record.steps):
            return
        # A run must not fail at its end for want of an extra.
        with contextlib.suppress(ImportError):
            save(plot_gradient_norm(record), self._run_dir / "gradient_norm.png")
            save(plot_layer_norms(record), self._run_dir / "layer_norms.png")
