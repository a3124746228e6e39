"""A sink that writes the monitor's readings to TensorBoard event files."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from gradstab.callbacks.sampled import Rates, each, rate_scalar, scalars_of
from gradstab.monitoring.entries import PerVariable, Totals
from gradstab.monitoring.record import Record
from gradstab.monitoring.tensorboard import TensorBoardWriter
from gradstab.optimizers.telemetry.reading import Reading
from gradstab.optimizers.watching.effective_rate import LEVELS
from gradstab.reports.layers import plot_layer_norms

# Samples that the heat map for TensorBoard is drawn from, thinned out when there are more.
_MOST_SAMPLES: Final = 800
_SECONDS_BETWEEN_IMAGES: Final = 30.0


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

    def event(
        self, name: str, step: int, message: str, cause: str | None = None, layer: str | None = None
    ) -> None:
        """Do nothing: there are no words in TensorBoard's event files."""

    def totals(self, totals: Totals, step: int) -> None:
        """Do nothing: the logs have them by epoch."""

    def end_epoch(self, epoch: int, step: int, logs: Mapping[str, Any]) -> None:
        """Draw the heat map anew, if the last one is some time old."""
        if time.monotonic() - self._drawn_at > _SECONDS_BETWEEN_IMAGES:
            self._draw()

    def end(self, reading: Reading, diverged: str | None, interrupted: str | None) -> None:
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
