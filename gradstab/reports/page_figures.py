"""The figures of the page, each with its caption and the option that adds its data."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, Final, NamedTuple

from gradstab.monitoring.record import Record
from gradstab.reports._drawing import new_figure
from gradstab.reports._svg import drawn
from gradstab.reports.epochs import plot_epochs
from gradstab.reports.figures import plot_gradient_norm
from gradstab.reports.layers import plot_activations, plot_layer_norms, plot_update_ratio
from gradstab.reports.rates import plot_effective_rate
from gradstab.reports.steps import plot_clip_rate, plot_incidents, plot_linearity

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Figure(NamedTuple):
    """One figure of the page.

    Attributes:
        name: Its id on the page.
        title: Title, for screen readers and for the list of missing figures.
        caption: How to read it.
        brought_by: The option that adds its data to the record.
        plot: Draws it.
        size: In inches; `None` lets the function choose, and the page gives it a row.
    """

    name: str
    title: str
    caption: str
    brought_by: str
    plot: Callable[..., Axes]
    size: tuple[float, float] | None

    def draw(self, record: Record) -> Axes:
        """Draw it for a record."""
        ax = None if self.size is None else new_figure(self.size).subplots()
        return self.plot(record, ax)


FIGURES: Final = (
    Figure(
        "epochs", "Losses and metrics by epoch",
        "Training, and validation if there was any.",
        "drawn once an epoch is complete",
        plot_epochs, (6.4, 4.2),
    ),
    Figure(
        "incidents", "Loss and incidents",
        "Loss of the recorded steps. Marks along the top are incidents; the table below has the "
        "details.",
        "needs a loss: under `fit` and `training.train` the steps have one, in a loop of your own "
        "pass it through `optimizer.scale_loss`",
        plot_incidents, (6.4, 3.6),
    ),
    Figure(
        "layers", "Gradient norm per layer",
        "Before the transforms. If columns darken towards the top, gradients vanish on their way "
        "to the first layers; if they brighten, gradients explode.",
        "`GradientMonitor(run_dir)`",
        plot_layer_norms, None,
    ),
    Figure(
        "norm", "Global gradient norm",
        "Before and after the transforms, with the bound if the run had one.",
        "`GradientMonitor(run_dir)`",
        plot_gradient_norm, (6.4, 3.6),
    ),
    Figure(
        "ratios", "Updates relative to weights",
        "Far below the band weights hardly move, far above they are overwritten. "
        "A ratio outside is a hint, not a proof.",
        "`GradientMonitor(run_dir, every_n_steps=50)`: on sampled steps",
        plot_update_ratio, (6.4, 3.6),
    ),
    Figure(
        "clips", "Clip rate",
        "Share of the recorded steps whose gradient was clipped to a bound. Under SGD a clip that "
        "acts on nearly every step is a smaller learning rate. Adam's step hardly depends on the "
        "gradient's length; there a clip changes the weight of single steps in the moments.",
        "an optimizer wrapped by `gradstab.stabilize` or a `clip_by_...` function",
        plot_clip_rate, (6.4, 3.6),
    ),
    Figure(
        "linearity", "Linearity of the steps",
        "If prediction and actual change agree on the probe, steps are in the linear regime; if "
        "they are far apart, the rate is too high.",
        "`GradientMonitor(run_dir, probe=(x, y))`",
        plot_linearity, (6.4, 3.6),
    ),
    Figure(
        "effective-rate", "Effective learning rate",
        "The factor on the gradient, layer by layer: the median over a layer's weights, and "
        "the band of the middle half.",
        "`GradientMonitor(run_dir, effective_rates=True)` with Adagrad, RMSprop, Adam or AdamW",
        plot_effective_rate, (6.4, 3.8),
    ),
    Figure(
        "activations", "Activations over depth",
        "At the last sampled step; dotted at the first.",
        "`GradientMonitor(run_dir, activations=True)`",
        plot_activations, (6.4, 4.2),
    ),
)  # fmt: skip


def figures(record: Record, chosen: Sequence[Figure] = FIGURES, prefix: str = "") -> str:
    """Return the figures of a record as HTML, and a list of those whose data it lacks.

    Args:
        record: The record.
        chosen: The figures.
        prefix: Goes before every id, where a page shows several runs.
    """
    there, missing = [], []
    for figure in chosen:
        name = f"{prefix}{figure.name}"
        svg = drawn(functools.partial(figure.draw, record), name, figure.title)
        if svg is None:
            missing.append(
                f'<li id="{name}">{escape(figure.title)}: {_code(figure.brought_by)}</li>'
            )
            continue
        is_wide = figure.size is None
        wide = ' class="wide"' if is_wide else ""
        note = '<p class="sideways">Wider than this screen: scroll it sideways.</p>\n'
        there.append(
            f'<figure id="{name}"{wide}>\n{note if is_wide else ""}'
            f'<div class="scroll" tabindex="0">{svg}</div>\n'
            f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
        )
    parts = ["<h2>Figures</h2>", '<div class="figures">', *there, "</div>"] if there else []
    if missing and not prefix:
        parts += [
            '<div class="missing card"><p>Not in this record, with the option that adds it:</p>',
            "<ul>",
            *missing,
            "</ul></div>",
        ]
    return "\n".join(parts)


def _code(words: str) -> str:
    """Return words as HTML, with what stands between backticks as code."""
    parts = escape(words).split("`")
    return "".join(
        f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts)
    )
