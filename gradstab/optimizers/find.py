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


def bind(model: Any) -> StabilizedOptimizer | None:
    """Show its model to the optimizer of gradstab's in it, in steps that are traced already too.

    Args:
        model: A compiled `keras.Model`, built or not; one that is not built is not bound.

    Returns:
        The optimizer, or `None` if the model has none of gradstab's.
    """
    optimizer = stabilized_optimizer(model)
    if optimizer is not None and model.built:
        traced_without = optimizer.bind(model)
        if traced_without and getattr(model, "train_function", None) is not None:
            model.make_train_function(force=True)
    return optimizer
