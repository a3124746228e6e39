"""Figures of what a run left behind: functions of a record and an `ax`, without Keras."""

from gradstab.reports.figures import (
    plot_comparison,
    plot_gradient_norm,
    plot_heatmap,
    plot_loss,
    save,
)

__all__ = ["plot_comparison", "plot_gradient_norm", "plot_heatmap", "plot_loss", "save"]
