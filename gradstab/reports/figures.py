"""Figures of runs: each a function of data and an `ax`, without pyplot and its global state.

Each draws on the given `ax`, or makes a new figure (`ax.figure`). If its data are missing, the
panel says so. They need matplotlib: `pip install "gradstab[report]"`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gradstab.monitoring.record import Record
from gradstab.reports._drawing import (
    BLACK,
    COLORS,
    GREY,
    axes_or_new,
    legend_below,
    line,
    make_room_for_marks,
    mark_top,
    new_figure,
    say_missing,
    series,
    style,
    thinned,
    tidy,
)
from gradstab.reports._files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_gradient_norm(record: Record, ax: Axes | None = None) -> Axes:
    """Draw the global gradient norm over the steps, before and after the transforms.

    Use it to see whether gradients explode, vanish or spike, and how the clip acts on them. The
    scale is logarithmic. The bound is the column `max_norm`, or that of the run's configuration.
    Skipped steps (events named `skip`) are marked along the top.

    Args:
        record: A run record with the column `grad_norm`, and `grad_norm_after` if there is one.
        ax: Where to draw; a new figure if `None`.

    Example:
        >>> import tempfile
        >>> from gradstab.monitoring import RecordWriter, read_record
        >>> from gradstab.reports import plot_gradient_norm
        >>> with tempfile.TemporaryDirectory() as run_dir:
        ...     with RecordWriter(run_dir) as writer:
        ...         writer.step(1, {"grad_norm": 30.0, "grad_norm_after": 1.0})
        ...         writer.step(2, {"grad_norm": 0.5, "grad_norm_after": 0.5})
        ...     ax = plot_gradient_norm(read_record(run_dir))
        >>> ax.get_yscale()
        'log'
    """
    ax = axes_or_new(ax)
    ax.set(title="Global gradient norm", xlabel="step", ylabel="norm")
    labels = {"grad_norm": "before the transforms", "grad_norm_after": "after the transforms"}
    names = [name for name in labels if name in record.columns]
    drawn = [
        line(ax, record.steps, record.columns[name], color=color, linewidth=1.0, label=labels[name])
        for name, color in zip(names, COLORS, strict=False)
    ]
    if not any(drawn):
        return say_missing(ax, "no gradient norms in this record")
    norms = [
        record.columns[name] for name in ("grad_norm", "grad_norm_after") if name in record.columns
    ]
    if not any((values > 0).any() for values in norms):
        return say_missing(ax, "the gradient was exactly zero at every recorded step")
    ax.set_yscale("log")
    _draw_bound(ax, record)
    skips = [event.step for event in record.events if event.name == "skip"]
    skipped = np.unique([step for step in skips if step is not None])
    if len(skipped):
        make_room_for_marks(ax, 1)
        label = f"skipped steps ({len(skipped)})"
        mark_top(ax, thinned(skipped), row=0, marker="v", color=BLACK, label=label)
    tidy(ax)
    legend_below(ax, 2)
    return ax


def plot_loss(record_or_histories: Any, ax: Axes | None = None) -> Axes:
    """Draw loss curves; steps or epochs with a loss that is not finite are marked along the top.

    Args:
        record_or_histories: A run record (its column `loss`, over steps), a Keras `History` or the
            mapping in its `history` (every key that is `loss` or ends in `_loss`, over epochs), or
            a mapping from a label to any of these.
        ax: Where to draw; a new figure if `None`.

    Example:
        >>> from gradstab.reports import plot_loss
        >>> ax = plot_loss({"loss": [2.3, 1.1], "val_loss": [2.2, 1.4]})
        >>> [line.get_label() for line in ax.get_lines()]
        ['loss', 'val_loss']
    """
    curves = list(_loss_curves(record_or_histories))
    ax = axes_or_new(ax)
    units = {unit for *_, unit in curves}
    ax.set(title="Loss", xlabel=" or ".join(sorted(units)), ylabel="loss")
    if not any(len(values) for _, _, values, _ in curves):
        return say_missing(ax, "no loss to draw")
    for place, (label, x, values, _) in enumerate(curves):
        color, dash = style(place)
        line(ax, x, values, color=color, linestyle=dash, linewidth=1.4, label=label)
    if _spans_decades(ax):
        ax.set_yscale("log")
    lost = [(place, x[~np.isfinite(values)]) for place, (_, x, values, _) in enumerate(curves)]
    lost = [(place, x) for place, x in lost if len(x)]
    if lost:
        make_room_for_marks(ax, len(lost))
    for row, (place, x) in enumerate(lost):
        label = f"{curves[place][0]} is not finite"
        mark_top(ax, thinned(x), row=row, marker="x", color=style(place)[0], label=label)
    locator: Any = ax.xaxis.get_major_locator()
    locator.set_params(integer=True)
    tidy(ax)
    ax.legend(frameon=False, fontsize=9)
    return ax


def plot_heatmap(
    values: Any,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    ax: Axes | None = None,
    *,
    title: str | None = None,
    label: str | None = None,
    decimals: int = 2,
) -> Axes:
    """Draw a table of numbers as coloured cells with the number in each.

    Args:
        values: Shape (rows, columns). Cells that are not finite are hatched and labelled.
        row_labels: One label for each row.
        column_labels: One label for each column.
        ax: Where to draw; a new figure of fitting size if `None`.
        title: Title above.
        label: Label of the colour scale.
        decimals: Digits after the point in the cells.

    Raises:
        ValueError: If the labels do not match the shape of `values`.

    Example:
        >>> from gradstab.reports import plot_heatmap
        >>> ax = plot_heatmap([[0.1, 0.97]], ["SGD"], ["random", "He"], title="accuracy")
        >>> [text.get_text() for text in ax.texts]
        ['0.10', '0.97']
    """
    table = np.asarray(values, "float64")
    if table.shape != (len(row_labels), len(column_labels)):
        raise ValueError(
            "`values` must have one row per row label and one column per column label. Received: "
            f"values of shape {table.shape}, {len(row_labels)} and {len(column_labels)} labels"
        )
    if ax is None:
        longest = max((len(name) for name in row_labels), default=0)
        width = 1.6 + 0.09 * longest + 0.62 * len(column_labels)
        ax = new_figure((width, 1.8 + 0.34 * len(row_labels))).subplots()
    ax.set_title(title or "")
    if not table.size:
        return say_missing(ax, "no values")
    finite = np.isfinite(table)
    image: Any = ax.imshow(np.where(finite, table, math.nan), cmap="cividis", aspect="auto")
    ax.patch.set(facecolor="white", hatch="////", edgecolor="#bbbbbb")  # shows through holes
    ax.set_xticks(range(len(column_labels)), column_labels, rotation=40, ha="right")
    ax.set_yticks(range(len(row_labels)), row_labels)
    ax.tick_params(length=0)
    for (row, column), value in np.ndenumerate(table):
        dark = finite[row, column] and float(image.norm(value)) < 0.5
        text = f"{value:.{decimals}f}" if finite[row, column] else f"{value}"
        ax.text(column, row, text, ha="center", va="center", fontsize=8,
                color="white" if dark else "black")  # fmt: skip
    if finite.any():
        ax.figure.colorbar(image, ax=ax, label=label or "", shrink=0.8)
    return ax


def save(figure: Figure | Axes, path: str | os.PathLike[str], *, dpi: int = 130) -> Path:
    """Write a figure as PNG, whole or not at all, and return its path.

    Args:
        figure: A figure, or an `ax` of one.
        path: The file; folders are created.
        dpi: Dots per inch.

    Example: `save(plot_loss(history), "loss.png")`.
    """
    target = Path(path)
    whole: Any = getattr(figure, "figure", None) or figure
    with whole_file(target) as file:
        whole.savefig(file, format="png", dpi=dpi, facecolor="white")
    return target


def _loss_curves(source: Any, label: str = "") -> list[tuple[str, Any, Any, str]]:
    """Return (label, x, values, unit of x) of every loss curve in a record, history or mapping."""
    if isinstance(source, Record):
        if "loss" not in source.columns:
            return []
        return [(label or "loss", source.steps, source.columns["loss"], "step")]
    history = getattr(source, "history", source)
    if not isinstance(history, Mapping):
        raise TypeError(
            "`record_or_histories` must be a run record, a Keras History, or a mapping of them. "
            f"Received: {source!r}"
        )
    curves = []
    for key, entry in history.items():
        name = f"{label} {key}".strip()
        if isinstance(entry, Record | Mapping) or hasattr(entry, "history"):
            curves += _loss_curves(entry, name)
        elif key == "loss" or key.endswith("_loss"):
            curves.append((name, *series(entry), "epoch"))
    return curves


def _draw_bound(ax: Axes, record: Record) -> None:
    if "max_norm" in record.columns:
        bound = record.columns["max_norm"]
        ax.step(record.steps, np.where(np.isfinite(bound), bound, math.nan), where="post",
                color=GREY, linestyle=":", label="clip bound")  # fmt: skip
        return
    bound = record.header["config"].get("max_norm")
    if isinstance(bound, int | float) and 0 < bound < 1e300:
        ax.axhline(bound, color=GREY, linestyle=":", label=f"clip bound {bound:g}")


def _spans_decades(ax: Axes) -> bool:
    values = np.concatenate([np.asarray(line.get_ydata(), "float64") for line in ax.get_lines()])
    values = values[np.isfinite(values)]
    return bool(values.size and values.min() > 0 and values.max() > 30 * values.min())
