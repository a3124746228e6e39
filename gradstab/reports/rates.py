"""Figures of learning rates: that of a schedule, and the effective rates of a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gradstab._validation import check_int
from gradstab.monitoring.record import Record
from gradstab.reports._drawing import (
    BLACK,
    COLORS,
    axes_or_new,
    legend_below,
    line,
    say_missing,
    style,
    tidy,
    whole_steps,
)
from gradstab.reports._words import label as shown
from gradstab.reports._words import without_common_start

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_POINTS: Final = 1000  # of a schedule that are evaluated
_FEW_LAYERS: Final = 6  # that can be told apart, each with a band


def plot_schedule(
    schedule: Callable[[Any], Any], num_steps: int, ax: Axes | None = None, *, label: str = ""
) -> Axes:
    """Draw the learning rate of a schedule over its first steps.

    Use it to check a schedule before a run. Pass the same `ax` again to draw one schedule over
    another. At most 1000 steps are evaluated, evenly spaced.

    Args:
        schedule: Any schedule of Keras' or gradstab's, or a function of the step.
        num_steps: Number of steps, from 0 on, a positive integer.
        ax: Where to draw; a new figure if `None`.
        label: Its name in the legend; `None` for none.

    Raises:
        ImportError: If matplotlib is missing: `pip install "gradstab[report]"`.
        TypeError: If `schedule` can't be called, or `num_steps` is not an integer.
        ValueError: If `num_steps` is not positive.

    Example:
        >>> from gradstab.reports import plot_schedule
        >>> from gradstab.schedules import LinearDecay, LinearWarmup
        >>> ax = plot_schedule(LinearWarmup(LinearDecay(0.4, 80), 20), num_steps=100)
        >>> ax.lines[0].get_ydata()[[20, 99]].round(4).tolist()
        [0.4, 0.005]
    """
    if not callable(schedule):
        raise TypeError(
            "`schedule` must be a learning rate schedule or a function of the step. "
            f"Received: schedule={schedule!r}"
        )
    num_steps = check_int("num_steps", num_steps)
    steps = np.unique(np.linspace(0, num_steps - 1, min(num_steps, _MOST_POINTS)).round())
    steps = steps.astype("int64")
    rates = _evaluate(schedule, steps)
    is_new = ax is None
    ax = axes_or_new(ax)
    color, dash = style(len(ax.lines))
    line(ax, steps, rates, color=color, linestyle=dash, linewidth=1.6, label=shown(label) or None)
    if is_new or not ax.get_xlabel():
        ax.set(xlabel="step", ylabel="learning rate")
        tidy(ax)
        whole_steps(ax)
        ax.set_ylim(bottom=0)
    if label:
        ax.legend(frameon=False, fontsize=8.5)
    return ax


def plot_effective_rate(record: Record, ax: Axes | None = None) -> Axes:
    """Draw the effective learning rate of each layer's weights over a run.

    Adagrad, RMSprop and Adam divide the rate by the size of each weight's gradients. A line is the
    median over the weights of a layer, its band the middle half; the dotted black line is the
    learning rate that was set. Up to six layers get a line each. Of more, the median layer, the
    middle 80 % of layers and the extremes are drawn.

    Args:
        record: A run record with `effective_rate_median` per layer, as
            `GradientMonitor(run_dir, effective_rates=True)` writes it.
        ax: Where to draw; a new figure if `None`.
    """
    ax = axes_or_new(ax)
    ax.set(title="Effective learning rate", xlabel="step", ylabel="rate of a weight")
    found = record.per_layer("effective_rate_median")
    medians = _positive(found.values)
    kept = np.isfinite(medians).any(axis=0)
    if not kept.any():
        return say_missing(ax, "no effective learning rates in this record")
    names, medians = without_common_start(found.names), medians[:, kept]
    names = [name for name, is_kept in zip(names, kept, strict=True) if is_kept]
    if len(names) <= _FEW_LAYERS:
        ends = [record.per_layer(f"effective_rate_{end}") for end in ("q25", "q75")]
        low, high = (
            _positive(each.values)[:, kept] if each.values.shape == found.values.shape else medians
            for each in ends
        )
        for place, name in enumerate(names):
            color, dash = style(place)
            band = (low[:, place], high[:, place])
            ax.fill_between(found.steps, *band, color=color, alpha=0.15, linewidth=0)
            line(
                ax, found.steps, medians[:, place], color=color, linestyle=dash,
                linewidth=1.4, label=shown(name, 24),
            )  # fmt: skip
    else:
        _draw_many(ax, found.steps, medians)
    if "learning_rate" in record.columns:
        set_rate = _positive(record.columns["learning_rate"])
        at = np.isfinite(set_rate)
        line(
            ax, record.steps[at], set_rate[at], color=BLACK, linestyle=":",
            linewidth=1.2, label="the rate that was set",
        )  # fmt: skip
    ax.set_yscale("log")
    whole_steps(ax)
    tidy(ax)
    legend_below(ax, 3 if len(names) <= _FEW_LAYERS else 2)
    return ax


def _draw_many(ax: Axes, steps: Any, medians: Any) -> None:
    kept = np.isfinite(medians).any(axis=1)
    steps, medians = steps[kept], medians[kept]
    low, middle, high = np.nanpercentile(medians, [10, 50, 90], axis=1)
    ax.fill_between(steps, low, high, color=COLORS[1], alpha=0.25, linewidth=0, label="middle 80 %")
    extremes: dict[str, Any] = {"color": COLORS[1], "linewidth": 0.8, "linestyle": ":"}
    line(ax, steps, np.nanmin(medians, axis=1), **extremes, label="smallest and largest")
    line(ax, steps, np.nanmax(medians, axis=1), **extremes)
    text = f"median of {medians.shape[1]} layers"
    line(ax, steps, middle, color=COLORS[1], linewidth=1.4, label=text)


def _evaluate(schedule: Callable[[Any], Any], steps: Any) -> Any:
    """Return the rates at all steps, in one call where the schedule takes arrays."""
    try:
        rates = np.asarray(schedule(steps), "float64")
    except Exception:  # It depends on the schedule what it raises; a step alone has to work.
        rates = np.zeros(0)
    if rates.shape != steps.shape:
        rates = np.array([float(np.asarray(schedule(int(step)))) for step in steps])
    return rates


def _positive(values: Any) -> Any:
    """Return values that a logarithmic scale can show, NaN for the others."""
    return np.where(np.isfinite(values) & (np.asarray(values) > 0), values, math.nan)
