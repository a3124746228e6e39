"""Callbacks that diagnose before training, watch gradients, and stop training that has diverged."""

import keras  # noqa: F401  first, so that gradstab's classes register in one order

from gradstab.callbacks.divergence_guard import DivergenceGuard
from gradstab.callbacks.gradient_monitor import GradientMonitor
from gradstab.callbacks.preflight import Preflight
from gradstab.callbacks.shared_block_monitor import SharedBlockMonitor

__all__ = ["DivergenceGuard", "GradientMonitor", "Preflight", "SharedBlockMonitor"]
