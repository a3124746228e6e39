"""A figure that compares runs of several methods side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gradstab.reports._drawing import (
    GREY,
    line,
    make_room_for_marks,
    mark_top,
    new_figure,
    running_median,
    say_missing,
    series,
    style,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS: Final = {"lost": "x", "single": "|"}
_MANY: Final = 100  # values, from where on a line is drawn faint under its running median
_DEAD: Final = 0.95  # share of the loss of guessing, above which a run learned nothing
_ROWS: Final = (("loss", "training loss", "epoch"), ("grad_norm", "global gradient norm", "step"))


def plot_comparison(
    results: Mapping[str, Mapping[str, Mapping[str, Any]]],
    *,
    chance_loss: float | None = None,
    rows: Sequence[tuple[str, str, str]] = _ROWS,
    title: str | None = None,
) -> Figure:
    """Draw runs of several methods in several settings: a column per setting, a line per method.

    All scales are logarithmic; long series are drawn faint, with their running median on top. At
    the top of a panel, `×` marks where a run's values become NaN or infinite for good, and `|`
    marks single such values. A ring at the end of a loss curve marks a run that ended no better
    than guessing.

    Args:
        results: Nested mapping: `results[setting][method]["loss"]` is a sequence of numbers.
            Settings and methods are drawn in this order.
        chance_loss: Loss of guessing, log(classes) for a balanced classification. It is drawn, and
            runs that end no better get a ring. `None` leaves both out.
        rows: Key, axis label and unit of x of each row of panels. A series given as a pair of
            sequences `(x, values)` is drawn over that x, else over 1, 2, ...
        title: Title of the figure.

    Raises:
        ValueError: If `results` or `rows` is empty.

    Example:
        >>> from gradstab.reports import plot_comparison
        >>> figure = plot_comparison(
        ...     {"exploding": {"plain": {"loss": [2.0, float("nan")], "grad_norm": [1e3, 1e9]}}}
        ... )
        >>> len(figure.axes)
        2
    """
    if not results or not rows:
        raise ValueError(
            "`results` must hold at least one setting, and `rows` one row. "
            f"Received: results={results!r}, rows={rows!r}"
        )
    ways = list(dict.fromkeys(way for setting in results.values() for way in setting))
    figure = new_figure((max(6.4, 3.4 * len(results)), 0.9 + 2.6 * len(rows)))
    grid = figure.subplots(len(rows), len(results), squeeze=False)
    if title:
        figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    marks: set[str] = set()
    for across, (setting, by_way) in enumerate(results.items()):
        for down, (key, label, unit) in enumerate(rows):
            ax = grid[down][across]
            chance = chance_loss if key == "loss" else None
            marks |= _draw_panel(ax, ways, by_way, key, chance)
            ax.set_xlabel(unit if ax.get_xticks().size else "")
            if across == 0:
                ax.set_ylabel(label)
            if down == 0:
                ax.set_title(textwrap.fill(setting, 44), fontsize=10)
    _legend_below(figure, ways, marks)
    return figure


def _draw_panel(
    ax: Axes,
    ways: Sequence[str],
    by_way: Mapping[str, Mapping[str, Any]],
    key: str,
    chance: float | None,
) -> set[str]:
    """Draw one panel and return which marks it needs explained."""
    ax.set_yscale("log")
    ax.tick_params(labelsize=8)
    tidy(ax)
    marks = set()
    marked: list[tuple[str, Any, str]] = []
    drawn = False
    for place, way in enumerate(ways):
        x, values = series(by_way.get(way, {}).get(key))
        if not len(values):
            continue
        color, dash = style(place)
        drawn = True
        if len(values) > _MANY:
            line(ax, x, values, color=color, linewidth=0.6, alpha=0.3)
            values_drawn = running_median(values, len(values) // 40)
            line(ax, x, values_drawn, color=color, linewidth=1.4, linestyle=dash)
        else:
            line(ax, x, values, color=color, linewidth=1.6, linestyle=dash)
        finite = np.isfinite(values)
        kept = len(values) - int(np.argmax(finite[::-1])) if finite.any() else 0
        marked += [("single", x[:kept][~finite[:kept]], color), ("lost", x[kept : kept + 1], color)]
        if chance is not None and finite[-1]:
            end = float(np.nanmedian(values[-max(1, len(values) // 4) :]))
            if end >= _DEAD * chance:
                marks.add("dead")
                # Rising sizes keep rings apart that end in one place.
                ax.plot(x[-1], values[-1], "o", mfc="none", mec=color, mew=1.6, ms=6 + 3 * place)
    if not drawn:
        say_missing(ax, f"no {key.replace('_', ' ')} here")
        return marks
    if chance is not None:
        ax.axhline(chance, color=GREY, linewidth=0.9, linestyle=":")
        marks.add("chance")
    marked = [mark for mark in marked if len(mark[1])]
    if marked:
        make_room_for_marks(ax, len(marked))
    for row, (mark, places, color) in enumerate(marked):
        marks.add(mark)
        mark_top(ax, places, row=row, marker=_MARKERS[mark], color=color)
    return marks


def _legend_below(figure: Figure, ways: Sequence[str], marks: set[str]) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for place, way in enumerate(ways):
        color, dash = style(place)
        handles.append(Line2D([], [], color=color, linestyle=dash, linewidth=2, label=way))
    plain: dict[str, Any] = {"color": GREY, "linestyle": "none", "markeredgewidth": 1.6}
    meanings = {
        "lost": Line2D([], [], marker="x", label="NaN or infinite from here to the end", **plain),
        "single": Line2D([], [], marker="|", label="a single NaN or infinite value", **plain),
        "dead": Line2D([], [], marker="o", mfc="none", label="ends at chance", **plain),
        "chance": Line2D([], [], color=GREY, linestyle=":", label="loss of guessing"),
    }
    handles += [handle for mark, handle in meanings.items() if mark in marks]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
