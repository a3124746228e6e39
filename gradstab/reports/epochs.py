"""Losses and metrics of a run by epoch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gradstab.monitoring.entries import Epoch
from gradstab.monitoring.record import Record
from gradstab.reports._drawing import axes_or_new, line, say_missing, style, tidy, whole_steps
from gradstab.reports._words import label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What a GradientMonitor adds to the logs of an epoch: told elsewhere.
_OF_THE_MONITOR: Final = (
    "grad_norm", "grad_norm_max", "clipped", "limited", "skipped", "update_ratio",
)  # fmt: skip
_MOST_LINES: Final = 6


def plot_epochs(record: Record, ax: Axes | None = None) -> Axes:
    """Draw losses (upper panel) and metrics (lower panel) over the epochs.

    Args:
        record: A run record with completed epochs.
        ax: Where to draw, in two panels if there are metrics; a new figure if `None`.
    """
    ax = axes_or_new(ax)
    ax.set_title("Losses and metrics by epoch")
    names = log_names(record.epochs)
    losses = [name for name in names if name == "loss" or name.endswith("_loss")]
    metrics = [name for name in names if name not in losses]
    if not names:
        return say_missing(ax, "no completed epoch in this record")
    panels = [ax]
    if losses and metrics:
        ax.set_axis_off()
        panels = [ax.inset_axes((0, 0.55, 1, 0.45)), ax.inset_axes((0, 0, 1, 0.43))]
        panels[0].set_xticklabels([])
    groups = [group for group in (losses, metrics) if group]
    for panel, group, words in zip(panels, groups, ("loss", "metrics"), strict=False):
        _draw(panel, record, group)
        panel.set_ylabel(words if len(groups) > 1 or losses else "metrics", fontsize=9)
    panels[-1].set_xlabel("epoch")
    return ax


def log_names(epochs: tuple[Epoch, ...]) -> list[str]:
    """Return the names of the losses and metrics of epochs, the monitor's own left out."""
    names = dict.fromkeys(name for epoch in epochs for name in epoch.logs)
    return [name for name in names if name.rpartition("/")[2] not in _OF_THE_MONITOR]


def _draw(ax: Axes, record: Record, names: list[str]) -> None:
    x = np.array([epoch.number for epoch in record.epochs])
    drawn: list[Any] = []
    for place, name in enumerate(names[:_MOST_LINES]):
        values = np.array([epoch.logs.get(name, math.nan) for epoch in record.epochs])
        color, dash = style(place)
        line(ax, x, values, color=color, linestyle=dash, linewidth=1.4, label=label(name, 24))
        drawn.append(values[np.isfinite(values)])
    together = np.concatenate(drawn)
    is_positive = len(together) > 0 and together.min() > 0
    if names[0].endswith("loss") and is_positive and together.max() > 30 * together.min():
        ax.set_yscale("log")
    tidy(ax)
    whole_steps(ax)
    ax.legend(frameon=False, fontsize=8)
