"""Callbacks that diagnose before training, watch gradients, and stop training that has diverged.

The names are loaded at their first use: each callback brings rooms that the others do without.
"""

import keras  # noqa: F401  first, so that gradstab's classes register in one order

from gradstab._lazy import names_of

TYPE_CHECKING = False  # Type checkers take it for true; Keras has to be the first import.
if TYPE_CHECKING:
    from gradstab.callbacks.divergence_guard import DivergenceGuard
    from gradstab.callbacks.gradient_monitor import GradientMonitor
    from gradstab.callbacks.preflight import Preflight
    from gradstab.callbacks.shared_block_monitor import SharedBlockMonitor

__all__ = ["DivergenceGuard", "GradientMonitor", "Preflight", "SharedBlockMonitor"]

__getattr__ = names_of(
    __name__,
    {
        "DivergenceGuard": "gradstab.callbacks.divergence_guard",
        "GradientMonitor": "gradstab.callbacks.gradient_monitor",
        "Preflight": "gradstab.callbacks.preflight",
        "SharedBlockMonitor": "gradstab.callbacks.shared_block_monitor",
    },
)
