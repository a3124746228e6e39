"""Figures over the steps of a run: the loss with incidents, clip rate, linearity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gradstab.monitoring.record import Record
from gradstab.reports._drawing import (
    COLORS,
    GREY,
    axes_or_new,
    legend_below,
    line,
    make_room_for_marks,
    mark_top,
    running_median,
    say_missing,
    style,
    thinned,
    tidy,
    whole_steps,
)
from gradstab.reports._words import label
from gradstab.reports.incidents import kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKS: Final = ("v", "x", "|", "+", "1", "d")
_MOST_ROWS: Final = 5  # kinds of incidents with a row of marks of their own
_WINDOWS: Final = 25  # parts of a run over which a rate is taken
_MANY: Final = 100


def plot_incidents(record: Record, ax: Axes | None = None) -> Axes:
    """Draw the loss, with incidents of the run along the top.

    A row of marks for each kind of incident: steps skipped by cause, clips and bounds changed,
    stops, steps that the record missed, findings, and recorded steps whose loss is not finite.

    Args:
        record: A run record with the column `loss`, events, or both.
        ax: Where to draw; a new figure if `None`.
    """
    ax = axes_or_new(ax)
    ax.set(title="Loss and incidents", xlabel="step", ylabel="loss")
    loss = record.columns.get("loss", np.zeros(0))
    marks = _marks(record, loss)
    if not np.isfinite(loss).any() and not marks:
        return say_missing(ax, "neither a loss nor an incident in this record")
    if np.isfinite(loss).any():
        _draw_smooth(ax, record.steps, loss, COLORS[1], "loss")
        finite = loss[np.isfinite(loss)]
        if finite.min() > 0 and finite.max() > 30 * finite.min():
            ax.set_yscale("log")
    else:
        ax.set_yticks([])
        ax.set_ylabel("no finite loss")
    if marks:
        make_room_for_marks(ax, len(marks))
    for row, (words, steps) in enumerate(marks):
        color = style(row + 2)[0] if row else COLORS[0]
        mark = _MARKS[row % len(_MARKS)]
        text = f"{words} ({len(steps)})"
        mark_top(ax, thinned(steps), row=row, marker=mark, color=color, label=text)
    tidy(ax)
    whole_steps(ax)
    legend_below(ax, 3)
    return ax


def plot_clip_rate(record: Record, ax: Axes | None = None) -> Axes:
    """Draw the share of the recorded steps that was clipped, in a sliding window.

    A clip that acts on nearly every step is a smaller learning rate; one that never acts is not
    needed, or too loose.

    Args:
        record: A run record with the column `clipped`, and `skipped` if there is one.
        ax: Where to draw; a new figure if `None`.
    """
    ax = axes_or_new(ax)
    ax.set(title="Clip rate", xlabel="step", ylabel="share of recorded steps")
    drawn = False
    for name, color in (("clipped", COLORS[0]), ("skipped", COLORS[1])):
        values = record.columns.get(name, np.zeros(0))
        known = np.isfinite(values)
        if name == "skipped" and not values[known].any():
            continue
        if known.any():
            drawn = True
            rate = _sliding_mean((values[known] > 0).astype("float64"))
            line(ax, record.steps[known], rate, color=color, linewidth=1.4, label=name)
    if not drawn:
        return say_missing(ax, "no clips in this record")
    ax.set_ylim(-0.03, 1.03)
    whole_steps(ax)
    tidy(ax)
    ax.legend(frameon=False, fontsize=8)
    return ax


def plot_linearity(record: Record, ax: Axes | None = None) -> Axes:
    """Draw the loss change that the gradient predicts for a step, and the actual one.

    If prediction and actual change agree on the probe batch, the step is in the linear regime; if
    they are far apart, the rate is too high. On the batch of the step itself there is only a
    prediction.

    Args:
        record: A run record with the column `linearity_predicted`, and with a probe batch also
            `linearity_probe_predicted` and `linearity_actual`.
        ax: Where to draw; a new figure if `None`.
    """
    ax = axes_or_new(ax)
    ax.set(title="Linearity of the steps", xlabel="step", ylabel="change of the loss by a step")
    drawn = []
    for name, text, color in (
        ("linearity_predicted", "predicted, batch of the step", COLORS[2]),
        ("linearity_probe_predicted", "predicted, probe", COLORS[1]),
        ("linearity_actual", "that came, probe", COLORS[0]),
    ):
        values = record.columns.get(name, np.zeros(0))
        known = ~np.isnan(values)  # the others are steps at which nobody looked
        if np.isfinite(values).any():
            drawn.append(values[np.isfinite(values)])
            line(ax, record.steps[known], values[known], color=color, linewidth=1.2, label=text)
    if not drawn:
        return say_missing(ax, "no predicted loss changes in this record")
    sizes = np.abs(np.concatenate(drawn))
    sizes = sizes[sizes > 0]
    if len(sizes) and sizes.max() > 30 * np.median(sizes):
        ax.set_yscale("symlog", linthresh=float(np.median(sizes)))
    ax.axhline(0, color=GREY, linewidth=0.8)
    whole_steps(ax)
    tidy(ax)
    ax.legend(frameon=False, fontsize=8)
    return ax


def _marks(record: Record, loss: Any) -> list[tuple[str, Any]]:
    """Return (words, rising steps) of each kind of incident, the most frequent ones."""
    steps: dict[str, set[int]] = {}
    for event in (*record.events, *record.findings):
        if event.step is not None and event.name not in ("start", "end"):
            steps.setdefault(label(kind(event)), set()).add(event.step)
    lost = record.steps[~np.isfinite(loss)] if np.isfinite(loss).any() else ()
    if len(lost):  # without a finite one the trainer may not have told the loss at all
        steps["loss not finite"] = {int(step) for step in lost}
    kinds = sorted(steps, key=lambda words: -len(steps[words]))
    for words in kinds[_MOST_ROWS:]:
        steps.setdefault("others", set()).update(steps.pop(words))
    return [(words, np.array(sorted(places))) for words, places in steps.items()]


def _draw_smooth(ax: Axes, steps: Any, values: Any, color: str, text: str) -> None:
    """Draw a line, a long one faint under its running median."""
    if len(values) <= _MANY:
        line(ax, steps, values, color=color, linewidth=1.4, label=text)
        return
    line(ax, steps, values, color=color, linewidth=0.6, alpha=0.35)
    smooth = running_median(values, max(3, len(values) // 40))
    line(ax, steps, smooth, color=color, linewidth=1.4, label=f"{text}, running median")


def _sliding_mean(values: Any) -> Any:
    """Return the mean of each value and those around it, in a window that the ends cut."""
    half = max(1, len(values) // _WINDOWS) // 2
    total = np.r_[0.0, np.cumsum(values)]
    places = np.arange(len(values))
    low, high = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)
