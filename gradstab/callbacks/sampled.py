"""One sampled step, as it is put into records and event files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np

from gradstab.optimizers.telemetry.reading import Reading
from gradstab.optimizers.telemetry.samples import Samples

# The rate of the last update, and what the optimizer made of it: quantiles by layer.
Rates: TypeAlias = tuple[float, np.ndarray[Any, Any]]


class Sample:
    """One closer look."""

    def __init__(self, samples: Samples, place: int) -> None:
        probe = {
            "linearity_probe_predicted": samples.probe_predicted[place],
            "linearity_actual": samples.probe_actual[place],
        }
        self.scalars = {
            "update_ratio": float(samples.update_ratio[place]),
            "linearity_predicted": float(samples.predicted[place]),
            **{name: float(value) for name, value in probe.items() if not np.isnan(value)},
        }
        self.variables = {name: values[place] for name, values in samples.variables.items()}
        self.layers = {
            f"activation_{name}": values[place]
            for name, values in samples.activations.items()
            if values.size
        }
        self.histograms = samples.histograms[place]


def each(samples: Samples) -> Iterator[tuple[int, Sample]]:
    """Yield the samples with the numbers of their steps."""
    for place, step in enumerate(samples.steps):
        yield int(step), Sample(samples, place)


def rate_scalar(rates: Rates) -> dict[str, float]:
    """Return the rate that was set; a `MultiOptimizer` has several and none of them is it."""
    return {} if np.isnan(rates[0]) else {"learning_rate": rates[0]}


def scalars_of(reading: Reading, row: int) -> dict[str, float]:
    """Return the numbers of one step."""
    return {
        "loss": float(reading.loss[row]),
        "grad_norm": float(reading.grad_norm[row]),
        "grad_norm_after": float(reading.grad_norm_after[row]),
        "clipped": int(reading.clipped[row]),
        "limited": int(reading.limited[row]),
        "skipped": int(reading.skipped[row]),
    }
