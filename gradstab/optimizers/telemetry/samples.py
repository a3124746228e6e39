"""Detailed samples of some steps, and the layout of one in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from gradstab.optimizers.telemetry.activations import KINDS

QUANTITIES: Final = (
    "grad_norm",
    "grad_norm_after",
    "grad_max",
    "grad_zeros",
    "grad_nonfinite",
    "weight_norm",
    "update_norm",
    "predicted_change",
)
_SCALARS: Final = ("update_ratio", "predicted", "probe_predicted", "probe_actual")


@dataclasses.dataclass(frozen=True)
class Samples:
    """Detailed samples of some steps, oldest first: S samples of N variables.

    Attributes:
        steps: Numbers of the steps, shape (S,).
        variables: Of every variable, each of shape (S, N): `grad_norm` before the transforms,
            `grad_norm_after` them, `grad_max` (largest finite magnitude), `grad_zeros` (share of
            entries that are exactly zero), `grad_nonfinite` (their number), `weight_norm` after
            the step, `update_norm`, `update_ratio` (the one over the other) and
            `predicted_change` of the loss, g·Δw. Gradients are those before the transforms.
        update_ratio: Norm of the whole update over that of all weights, shape (S,).
        predicted: Change of the loss that the gradient predicts for the step, g·Δw, shape (S,).
        probe_predicted: The same with the gradient of the loss on the probe batch; NaN without one.
        probe_actual: Change of the loss on the probe batch by the step; NaN without one.
        histograms: Of every variable's gradient, shape (S, N, 2 + bins): smallest and largest
            finite entry, then the counts in equal bins between them. No bins unless asked for.
        activations: By statistic, of every watched layer, each of shape (S, layers).
    """

    steps: np.ndarray[Any, Any]
    variables: Mapping[str, np.ndarray[Any, Any]]
    update_ratio: np.ndarray[Any, Any]
    predicted: np.ndarray[Any, Any]
    probe_predicted: np.ndarray[Any, Any]
    probe_actual: np.ndarray[Any, Any]
    histograms: np.ndarray[Any, Any]
    activations: Mapping[str, np.ndarray[Any, Any]]

    def __len__(self) -> int:
        return len(self.steps)


class Layout:
    """The layout of one sample, a row of float32 on the device.

    Args:
        num_variables: How many variables are trained.
        bins: Bins of the histogram of each gradient; 0 for none.
        num_layers: How many layers' outputs are watched.

    Attributes:
        width: Numbers in a row.
    """

    def __init__(self, num_variables: int, bins: int, num_layers: int) -> None:
        self._shapes = (
            (len(QUANTITIES), num_variables),
            (len(_SCALARS),),
            (num_variables, bins + 2 if bins else 0),
            (num_layers, len(KINDS)),
        )
        self._sizes = [int(np.prod(shape)) for shape in self._shapes]
        self.width = sum(self._sizes)

    def unpack(self, steps: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]) -> Samples:
        """Return the samples of some steps, given their rows."""
        split = np.split(rows, np.cumsum(self._sizes)[:-1], axis=1)
        columns, scalars, histograms, activations = (
            part.reshape(len(rows), *shape) for part, shape in zip(split, self._shapes, strict=True)
        )
        variables = {name: columns[:, place] for place, name in enumerate(QUANTITIES)}
        with np.errstate(all="ignore"):
            ratios = variables["update_norm"] / variables["weight_norm"]
        variables["update_ratio"] = np.where(variables["update_norm"] == 0, 0, ratios)
        return Samples(
            steps=steps,
            variables=variables,
            **{name: scalars[:, place] for place, name in enumerate(_SCALARS)},
            histograms=histograms,
            activations={name: activations[..., place] for place, name in enumerate(KINDS)},
        )
