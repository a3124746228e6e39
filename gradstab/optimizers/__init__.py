"""The optimizer that wraps another, and functions that do the wrapping."""

import keras  # noqa: F401  first, so that gradstab's classes register in one order

from gradstab.optimizers.effective_rate import effective_learning_rates
from gradstab.optimizers.stabilize import (
    clip_by_global_norm,
    clip_by_norm,
    clip_by_value,
    stabilize,
)
from gradstab.optimizers.stabilized import StabilizedOptimizer

__all__ = [
    "StabilizedOptimizer",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "effective_learning_rates",
    "stabilize",
]
