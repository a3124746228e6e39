"""Finds gradstab's optimizer in a model, whatever stands round it."""

from __future__ import annotations

from typing import Any

from gradstab.optimizers.stabilized import StabilizedOptimizer


def stabilized_optimizer(model_or_optimizer: Any) -> StabilizedOptimizer | None:
    """Return the `StabilizedOptimizer` of a model or inside an optimizer, or `None`."""
    optimizer = getattr(model_or_optimizer, "optimizer", model_or_optimizer)
    while optimizer is not None and not isinstance(optimizer, StabilizedOptimizer):
        optimizer = getattr(optimizer, "inner_optimizer", None)
    return optimizer
