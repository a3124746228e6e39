"""Reports of a run as figures, page, text and JSON: functions of a record, without Keras."""

from gradstab.reports.comparison import plot_comparison
from gradstab.reports.epochs import plot_epochs
from gradstab.reports.figures import (
    plot_gradient_norm,
    plot_heatmap,
    plot_loss,
    save,
)
from gradstab.reports.html import to_html, write_html
from gradstab.reports.layers import plot_activations, plot_layer_norms, plot_update_ratio
from gradstab.reports.rates import plot_effective_rate, plot_schedule
from gradstab.reports.steps import plot_clip_rate, plot_incidents, plot_linearity
from gradstab.reports.summary import Summary, summarize
from gradstab.reports.text import to_json, to_text

__all__ = [
    "Summary",
    "plot_activations",
    "plot_clip_rate",
    "plot_comparison",
    "plot_effective_rate",
    "plot_epochs",
    "plot_gradient_norm",
    "plot_heatmap",
    "plot_incidents",
    "plot_layer_norms",
    "plot_linearity",
    "plot_loss",
    "plot_schedule",
    "plot_update_ratio",
    "save",
    "summarize",
    "to_html",
    "to_json",
    "to_text",
    "write_html",
]
