"""What all figures share: colours, lines with gaps, marks along the top, an empty plot's words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with any colour vision, each with a dash of its own for print.
COLORS: Final = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: Final = ("-", (0, (6, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), "-", (0, (6, 1)), "-")
GREY: Final = "#666666"
BLACK: Final = "#000000"
GRID: Final = "#e4e4e4"
# What `say_missing` leaves as the group id of an `ax`.
MISSING: Final = "missing"
# Height of one row of marks, as a share of the panel's.
_MARK_ROW: Final = 0.06


def style(place: int) -> tuple[str, Any]:
    """Return colour and dash of the line at a place in the legend."""
    return COLORS[place % len(COLORS)], DASHES[place % len(DASHES)]


def require_matplotlib() -> None:
    """Say which extra brings matplotlib where it is missing."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'Figures need matplotlib, which is not installed: pip install "gradstab[report]"'
        ) from error


def new_figure(size: tuple[float, float]) -> Figure:
    """Return an empty figure."""
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def axes_or_new(ax: Axes | None) -> Axes:
    """Return the `ax` that was given, or that of a new figure."""
    return new_figure((7.2, 4.0)).subplots() if ax is None else ax


def line(ax: Axes, x: Any, values: Any, **style: Any) -> bool:
    """Draw the finite values, with gaps for the others; say whether there were any."""
    finite = np.isfinite(values)
    # A value between two gaps is no line: without a marker it could not be seen.
    alone = finite & ~np.r_[False, finite[:-1]] & ~np.r_[finite[1:], False]
    (drawn,) = ax.plot(x, np.where(finite, values, math.nan), **style)
    if alone.any():
        drawn.set(marker="o", markersize=4, markevery=np.flatnonzero(alone).tolist())
    return bool(finite.any())


def mark_top(ax: Axes, x: Any, *, row: int, marker: str, color: str, label: str = "") -> None:
    """Mark places along the top, whatever the scale: x in data, y in the panel's height."""
    if not len(x):
        return
    height = np.full(len(x), 1 - _MARK_ROW * (row + 0.5))
    ax.scatter(
        x,
        height,
        marker=marker,
        s=24,
        linewidths=1.4,
        color=color,
        transform=ax.get_xaxis_transform(),
        label=label or None,
    )


def thinned(x: Any, most: int = 400) -> Any:
    """Return so few of rising places that their marks still look the same, first and last kept."""
    if len(x) <= most:
        return x
    bins = np.floor((np.asarray(x, "float64") - x[0]) / max(x[-1] - x[0], 1) * most)
    kept = np.flatnonzero(np.r_[True, np.diff(bins) > 0])
    return np.asarray(x)[kept]


def make_room_for_marks(ax: Axes, rows: int) -> None:
    """Widen the panel upwards, once all lines are drawn, so that marks do not hide them."""
    low, high = ax.transScale.transform([(1, limit) for limit in ax.get_ylim()])[:, 1]
    share = _MARK_ROW * (rows + 0.5)
    top = low + (high - low) / (1 - share)
    ax.set_ylim(top=ax.transScale.inverted().transform((1, top))[1])


def tidy(ax: Axes) -> None:
    """Take off what does not tell anything, and draw a quiet grid."""
    ax.grid(axis="y", color=GRID, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)


def whole_steps(ax: Axes) -> None:
    """Put no tick between two steps."""
    locator: Any = ax.xaxis.get_major_locator()
    locator.set_params(integer=True)


def legend_below(ax: Axes, columns: int) -> None:
    """Explain under the panel, where no line and no mark is hidden."""
    ax.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.17),
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        columnspacing=1.4,
    )


def say_missing(ax: Axes, what: str) -> Axes:
    """Leave a plot without data, in words."""
    ax.set_yscale("linear")
    ax.set_gid(MISSING)
    ax.set(xticks=[], yticks=[], xlabel="", ylabel="")
    ax.spines[:].set_color("#cccccc")
    ax.text(0.5, 0.5, what, transform=ax.transAxes, ha="center", va="center", color=GREY)
    return ax


def running_median(values: Any, window: int) -> Any:
    """Return the median of the finite values around each, NaN where it is not finite itself."""
    half = window // 2
    padded = np.pad(np.where(np.isfinite(values), values, math.nan), half, constant_values=math.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    finite = np.isfinite(values)
    smooth = np.full(len(values), math.nan)
    smooth[finite] = np.nanmedian(windows[finite], axis=1)
    return smooth


def series(entry: Any) -> tuple[Any, Any]:
    """Return x and values of a sequence of numbers, over 1, 2, ..., or of a pair (x, values)."""
    if entry is None:
        return np.zeros(0), np.zeros(0)
    if isinstance(entry, tuple) and len(entry) == 2 and np.ndim(entry[0]) == 1:
        return np.asarray(entry[0], "float64"), np.asarray(entry[1], "float64")
    values = np.asarray(entry, "float64")
    return np.arange(1, len(values) + 1), values
