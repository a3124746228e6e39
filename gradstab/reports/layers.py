"""Figures over the depth of a network: gradient norms, update ratios, activations by layer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gradstab.monitoring.record import PerVariable, Record
from gradstab.reports._drawing import (
    COLORS,
    GREY,
    axes_or_new,
    legend_below,
    line,
    new_figure,
    say_missing,
    style,
    tidy,
    whole_steps,
)
from gradstab.reports._words import label, without_common_start

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Ratio of a step's update to the weights between which training is usually healthy.
HEALTHY: Final = (1e-4, 1e-1)
ACTIVATIONS: Final = ("mean", "deviation", "saturated", "dead")
_NAMED_ROWS: Final = 40  # rows of the heat map that are named at most
_MOST_COLUMNS: Final = 400  # of its cells over the steps
_DECADES: Final = 12  # that its colours span at most, down from the largest norm
_FEW_LINES: Final = 7  # lines that can be told apart
_ZERO, _BROKEN = "#9ecae1", "#e31a1c"


def plot_layer_norms(record: Record, ax: Axes | None = None) -> Axes:
    """Draw the gradient norm of every layer over the sampled steps as a heat map.

    Use it to see where gradients vanish or explode: the first layer is on top, colours are on a
    logarithmic scale. Gradients that are exactly zero, and those with NaN or infinite entries, have
    colours of their own. The norm of a layer is that of all its variables together. Where several
    samples share a column, the largest is shown.

    Args:
        record: A run record with the per-variable quantity `grad_norm`.
        ax: Where to draw; a new figure whose height fits the layers if `None`.

    Example:
        >>> import tempfile
        >>> from gradstab.monitoring import RecordWriter, read_record
        >>> from gradstab.reports import plot_layer_norms
        >>> with tempfile.TemporaryDirectory() as run_dir:
        ...     with RecordWriter(run_dir, variables=["a/kernel", "b/kernel"]) as writer:
        ...         writer.step(1, {}, per_variable={"grad_norm": [1e-6, 0.1]})
        ...     ax = plot_layer_norms(read_record(run_dir))
        >>> [tick.get_text() for tick in ax.get_yticklabels()]
        ['a', 'b']
    """
    layers, steps, norms = _by_layer(record.norms)
    if ax is None:
        height = 1.5 + 0.2 * min(max(len(layers), 5), _NAMED_ROWS)
        ax = new_figure((9.0, height)).subplots()
    ax.set_title("Gradient norm per layer", loc="left")
    ax.set(xlabel="step", ylabel="layer, the first on top")
    if not norms.size:
        return say_missing(ax, "no gradient norms per layer in this record")
    steps, norms = _at_most(_MOST_COLUMNS, steps, norms)
    x, y = _edges(steps), np.arange(len(layers) + 1) - 0.5
    positive = np.isfinite(norms) & (norms > 0)
    if positive.any():
        _draw_cells(ax, x, y, np.ma.masked_where(~positive, norms).T)
    _draw_odd_cells(ax, x, y, norms.T)
    stride = math.ceil(len(layers) / _NAMED_ROWS)
    named = range(0, len(layers), stride)
    names = without_common_start(layers)
    ax.set_yticks(list(named), [label(names[place]) for place in named], fontsize=8)
    if stride > 1:
        ax.set_ylabel(f"{len(layers)} layers, the first on top, one in {stride} named")
    ax.set_ylim(len(layers) - 0.5, -0.5)
    whole_steps(ax)
    ax.tick_params(length=2)
    return ax


def plot_update_ratio(record: Record, ax: Axes | None = None) -> Axes:
    """Draw the size of the updates relative to the weights, with the usually healthy band.

    Below 1e-4 weights hardly move, above 0.1 they are overwritten; a ratio outside is a hint, not a
    proof. Up to seven variables get a line each. More are drawn as their median, the middle 80 %
    and the extremes. Without ratios per variable, the run's column `update_ratio` is drawn.

    Args:
        record: A run record with `update_ratio`, per variable or as a column.
        ax: Where to draw; a new figure if `None`.
    """
    ax = axes_or_new(ax)
    ax.set(title="Updates relative to weights", xlabel="step", ylabel="norm of update / of weights")
    ratios = record.per_variable("update_ratio")
    if np.any(_drawable(ratios.values)):
        _draw_ratios(ax, ratios)
    elif "update_ratio" in record.columns and np.any(_drawable(record.columns["update_ratio"])):
        values = _positive(record.columns["update_ratio"])
        line(ax, record.steps, values, color=COLORS[1], linewidth=1.2, label="all variables")
    else:
        return say_missing(ax, "no update-to-weight ratios in this record")
    ax.set_yscale("log")
    # The band belongs to the picture where the lines lie far from it too.
    ax.axhspan(*HEALTHY, color=COLORS[2], alpha=0.13, linewidth=0, label="healthy, mostly")
    whole_steps(ax)
    tidy(ax)
    legend_below(ax, 3 if len(ratios.names) <= _FEW_LINES else 2)
    return ax


def plot_activations(record: Record, ax: Axes | None = None) -> Axes:
    """Draw the activations over depth at the last sampled step, and faintly at the first.

    Upper panel: the mean of each layer's output, with a band of one standard deviation. Lower
    panel: the shares that are saturated and dead.

    Args:
        record: A run record with `activation_mean`, `activation_deviation`, `activation_saturated`
            and `activation_dead`, or some of them.
        ax: Where to draw two panels; a new figure if `None`.
    """
    ax = axes_or_new(ax)
    ax.set_title("Activations over depth")
    found = {name: activations(record, name) for name in ACTIVATIONS}
    found = {name: (layers, values) for name, (layers, values) in found.items() if values.size}
    if not found:
        return say_missing(ax, "no activation statistics in this record")
    ax.set_axis_off()
    upper, lower = ax.inset_axes((0, 0.56, 1, 0.44)), ax.inset_axes((0, 0, 1, 0.44))
    _draw_scale(upper, found)
    _draw_shares(lower, found)
    layers = next(iter(found.values()))[0]
    _name_layers(lower, layers)
    upper.set_xticks([])
    return ax


def activations(record: Record, name: str) -> tuple[tuple[str, ...], Any]:
    """Return layers and values, shape (samples, layers), of one statistic of the activations."""
    found = record.per_layer(f"activation_{name}")
    return found.names, found.values


def _by_layer(norms: PerVariable) -> tuple[list[str], Any, Any]:
    """Return layers in the order of their first variables, steps, and norms by step and layer."""
    owners = [name.rpartition("/")[0] or name for name in norms.names]
    layers = list(dict.fromkeys(owners))
    places = {layer: place for place, layer in enumerate(layers)}
    together = np.zeros((len(norms.steps), len(layers)))
    for column, owner in enumerate(owners):
        # hypot neither overflows nor underflows where a sum of squares would.
        place = places[owner]
        together[:, place] = np.hypot(together[:, place], norms.values[:, column])
        lost = np.isnan(norms.values[:, column])
        together[lost, place] = math.nan
    return layers, norms.steps, together


def _at_most(most: int, steps: Any, norms: Any) -> tuple[Any, Any]:
    """Join neighbouring samples: the largest norm stays, a NaN or infinite one too."""
    if len(steps) <= most:
        return steps, norms
    starts = np.arange(0, len(steps), math.ceil(len(steps) / most))
    return steps[starts], np.maximum.reduceat(norms, starts, axis=0)


def _edges(steps: Any) -> Any:
    """Return the borders of cells around steps: half-way to the next."""
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    middles = (steps[1:] + steps[:-1]) / 2
    return np.r_[steps[0] - (middles[0] - steps[0]), middles, 2 * steps[-1] - middles[-1]]


def _draw_cells(ax: Axes, x: Any, y: Any, cells: Any) -> None:
    from matplotlib.colors import LogNorm

    largest = float(cells.max())
    smallest = max(float(cells.min()), largest * 10.0**-_DECADES)
    if smallest > largest / 10:
        smallest = largest / 10
    # Rasterized: a cell of a vector image for each number would be megabytes.
    mesh = ax.pcolormesh(
        x, y, cells, norm=LogNorm(smallest, largest), cmap="magma", rasterized=True
    )
    extend = "min" if cells.min() < smallest else "neither"
    ax.figure.colorbar(mesh, ax=ax, label="gradient norm", extend=extend, pad=0.015)


def _draw_odd_cells(ax: Axes, x: Any, y: Any, norms: Any) -> None:
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    handles = []
    kinds = ((norms == 0, _ZERO, "exactly zero"), (~np.isfinite(norms), _BROKEN, "NaN or infinite"))
    for where, color, meaning in kinds:
        if where.any():
            cells = np.ma.masked_where(~where, np.ones(norms.shape))
            ax.pcolormesh(x, y, cells, cmap=ListedColormap([color]), rasterized=True)
            handles.append(Patch(color=color, label=meaning))
    if handles:
        ax.legend(
            handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False,
            fontsize=8, borderaxespad=0.1,
        )  # fmt: skip


def _drawable(values: Any) -> Any:
    return np.isfinite(values) & (np.asarray(values) > 0)


def _positive(values: Any) -> Any:
    """Return values that a logarithmic scale can show, NaN for the others."""
    return np.where(_drawable(values), values, math.nan)


def _draw_ratios(ax: Axes, ratios: PerVariable) -> None:
    values = _positive(ratios.values)
    if len(ratios.names) <= _FEW_LINES:
        names = without_common_start(ratios.names)
        for place, name in enumerate(names):
            color, dash = style(place)
            ax_label = label(name, 24)
            line(ax, ratios.steps, values[:, place], color=color, linestyle=dash, label=ax_label)
        return
    kept = np.isfinite(values).any(axis=1)
    steps, values = ratios.steps[kept], values[kept]
    low, middle, high = np.nanpercentile(values, [10, 50, 90], axis=1)
    ax.fill_between(steps, low, high, color=COLORS[1], alpha=0.25, linewidth=0, label="middle 80 %")
    extremes: dict[str, Any] = {"color": GREY, "linewidth": 0.8, "linestyle": ":"}
    line(ax, steps, np.nanmin(values, axis=1), **extremes, label="smallest and largest")
    line(ax, steps, np.nanmax(values, axis=1), **extremes)
    text = f"median of {len(ratios.names)} variables"
    line(ax, steps, middle, color=COLORS[1], linewidth=1.4, label=text)


def _draw_scale(ax: Axes, found: dict[str, Any]) -> None:
    ax.set_ylabel("mean ± deviation", fontsize=9)
    means = found.get("mean", (None, None))[1]
    deviations = found.get("deviation", (None, None))[1]
    if means is None and deviations is None:
        say_missing(ax, "no mean or deviation in this record")
        return
    values = means if means is not None else np.zeros(deviations.shape)
    x = np.arange(values.shape[1])
    if deviations is not None:
        band = (values[-1] - deviations[-1], values[-1] + deviations[-1])
        ax.fill_between(x, *band, color=COLORS[1], alpha=0.25, linewidth=0)
    if len(values) > 1:
        line(ax, x, values[0], color=GREY, linewidth=0.9, linestyle=":", label="first sample")
    line(ax, x, values[-1], color=COLORS[1], linewidth=1.4, label="last sample")
    tidy(ax)
    ax.legend(frameon=False, fontsize=8)


def _draw_shares(ax: Axes, found: dict[str, Any]) -> None:
    ax.set_ylabel("share", fontsize=9)
    shares = [(name, found[name][1]) for name in ("saturated", "dead") if name in found]
    if not shares:
        say_missing(ax, "no saturated or dead share in this record")
        return
    for (name, values), color in zip(shares, (COLORS[4], COLORS[3]), strict=False):
        x = np.arange(values.shape[1])
        if len(values) > 1:
            line(ax, x, values[0], color=color, linewidth=0.9, linestyle=":")
        line(ax, x, values[-1], color=color, linewidth=1.4, marker=".", markersize=5, label=name)
    ax.set_ylim(-0.03, 1.03)
    tidy(ax)
    ax.legend(frameon=False, fontsize=8, ncols=2)


def _name_layers(ax: Axes, layers: tuple[str, ...]) -> None:
    stride = math.ceil(len(layers) / 16)
    named = range(0, len(layers), stride)
    names = [label(without_common_start(layers)[place], 16) for place in named]
    ax.set_xticks(list(named), names, rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
    if stride > 1:
        ax.set_xlabel(f"{len(layers)} layers, one in {stride} named", fontsize=8)
