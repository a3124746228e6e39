"""Where what the monitor reads is put: the run record, and TensorBoard's event files."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from gradstab.callbacks.sampled import Rates, Sample, each, rate_scalar, scalars_of
from gradstab.monitoring.record import PerVariable, Record, read_record
from gradstab.monitoring.tensorboard import TensorBoardWriter
from gradstab.monitoring.writer import RecordWriter
from gradstab.optimizers.effective_rate import LEVELS
from gradstab.optimizers.reading import Reading
from gradstab.reports.figures import plot_gradient_norm, save
from gradstab.reports.layers import plot_layer_norms

# Samples that the heat map for TensorBoard is drawn from, thinned out when there are more.
_MOST_SAMPLES: Final = 800
_SECONDS_BETWEEN_IMAGES: Final = 30.0


class Sink(Protocol):
    """What takes readings."""

    def write(self, reading: Reading, rates: Rates | None = None) -> None:
        """Put down what happened, and the effective rates after the last step of the reading."""

    def event(self, name: str, step: int, message: str, cause: str | None = None) -> None:
        """Put down something that happened."""

    def end_epoch(self) -> None:
        """Put down what is due at the end of an epoch."""

    def end(self, reading: Reading) -> None:
        """Put down the end of the run, and close."""

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
    ) -> None:
        self._run_dir = run_dir
        self._every_n_steps = every_n_steps
        self._last_written = -1
        self._writer = RecordWriter(
            run_dir,
            variables=variables,
            layers=layers,
            trained_layers=trained_layers,
            config=config,
        )

    def write(self, reading: Reading, rates: Rates | None = None) -> None:
        """Write skipped steps as events, and the sampled steps with their numbers."""
        if reading.missed:
            self._writer.event("missed", step=reading.cursor, steps=reading.missed)
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
                    step=number,
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
        if sample is None:
            self._writer.step(number, scalars, per_trained_layer=effective)
        else:
            self._writer.step(
                number, scalars | sample.scalars, sample.variables, sample.layers, effective
            )
        self._last_written = number

    def event(self, name: str, step: int, message: str, cause: str | None = None) -> None:
        """Write an event."""
        known = {} if cause is None else {"cause": cause}
        self._writer.event(name, step=step, **known, message=message)

    def end_epoch(self) -> None:
        """Do nothing: the record is on disk already."""

    def end(self, reading: Reading) -> None:
        """Write the last step and how the run ended, close, and draw."""
        if len(reading.steps) and reading.steps[-1] > self._last_written:
            self._step(int(reading.steps[-1]), reading, len(reading.steps) - 1, None)
        why = reading.divergence
        if why is None:
            self._writer.event("end", step=reading.cursor)
        else:
            self._writer.event("stop", step=reading.cursor, cause="divergence", message=str(why))
        self._writer.close()
        self._draw()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _draw(self) -> None:
        record = read_record(self._run_dir)
        if not len(record.steps):
            return
        # A run must not fail at its end for want of an extra.
        with contextlib.suppress(ImportError):
            save(plot_gradient_norm(record), self._run_dir / "gradient_norm.png")
            save(plot_layer_norms(record), self._run_dir / "layer_norms.png")


class TensorBoardSink:
    """Writes scalars, histograms and a heat map of the layers as TensorBoard events.

    Args:
        log_dir: Folder for the event files.
        variables: Paths of the trained variables.
        layers: Names of the layers whose activations are sampled.
        trained_layers: Names of the layers whose effective rates are sampled.

    Raises:
        ImportError: If TensorBoard is missing; the message names the extra.
    """

    def __init__(
        self,
        log_dir: Path,
        variables: Sequence[str],
        layers: Sequence[str],
        trained_layers: Sequence[str],
    ) -> None:
        self._writer = TensorBoardWriter(log_dir)
        self._log_dir = log_dir
        self._variables = tuple(variables)
        self._layers = tuple(layers)
        self._trained_layers = tuple(trained_layers)
        self._norms: list[tuple[int, np.ndarray[Any, Any]]] = []
        self._drawn_at = time.monotonic()

    def write(self, reading: Reading, rates: Rates | None = None) -> None:
        """Write what the samples tell."""
        if rates is not None:
            medians = rates[1][:, list(LEVELS).index("median")].tolist()
            tagged = {
                f"effective_rate/{layer}": value
                for layer, value in zip(self._trained_layers, medians, strict=True)
            }
            self._writer.scalars(reading.cursor, rate_scalar(rates) | tagged)
        known = {int(number): row for row, number in enumerate(reading.steps)}
        for number, sample in [] if reading.samples is None else each(reading.samples):
            row = known.get(number)
            scalars = {} if row is None else scalars_of(reading, row)
            tagged = {f"gradients/{name}": value for name, value in scalars.items()}
            tagged |= {f"gradients/{name}": value for name, value in sample.scalars.items()}
            for name in ("grad_norm", "update_ratio"):
                values = sample.variables[name].tolist()
                tagged |= {
                    f"{name}/{variable}": value
                    for variable, value in zip(self._variables, values, strict=True)
                }
            for name, values in sample.layers.items():
                tagged |= {
                    f"{name}/{layer}": value
                    for layer, value in zip(self._layers, values.tolist(), strict=True)
                }
            self._writer.scalars(number, tagged)
            ends, counts = sample.histograms[:, :2], sample.histograms[:, 2:]
            self._writer.histograms(number, counts, ends[:, 0], ends[:, 1], self._variables)
            self._norms.append((number, sample.variables["grad_norm"]))
        if len(self._norms) > _MOST_SAMPLES:
            self._norms = self._norms[::2]
        self._writer.flush()

    def event(self, name: str, step: int, message: str, cause: str | None = None) -> None:
        """Do nothing: there are no words in TensorBoard's event files."""

    def end_epoch(self) -> None:
        """Draw the heat map anew, if the last one is some time old."""
        if time.monotonic() - self._drawn_at > _SECONDS_BETWEEN_IMAGES:
            self._draw()

    def end(self, reading: Reading) -> None:
        """Draw the heat map of the whole run, and close."""
        self._draw()
        self._writer.close()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _draw(self) -> None:
        self._drawn_at = time.monotonic()
        if not self._norms:
            return
        steps = np.array([step for step, _ in self._norms])
        norms = np.stack([norms for _, norms in self._norms]).astype("float64")
        record = Record(
            path=self._log_dir,
            runs=({"variables": list(self._variables), "config": {}},),
            steps=steps,
            columns={},
            events=(),
            findings=(),
            problems=(),
            _samples={"grad_norm": PerVariable(steps, self._variables, norms)},
        )
        with contextlib.suppress(ImportError):
            figure: Any = plot_layer_norms(record).figure
            stream = io.BytesIO()
            figure.savefig(stream, format="png", dpi=110, facecolor="white")
            self._writer.image(int(steps[-1]), "gradients/layers", stream.getvalue())
