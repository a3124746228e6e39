"""Optimizers that stand inside others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def parts(optimizer: Any) -> list[Any]:
    """Return the optimizers that do the work: those inside a `MultiOptimizer`, or the one given."""
    return list(getattr(optimizer, "optimizers", [optimizer]))


def wrappers_and_inner(optimizer: Any) -> Iterator[Any]:
    """Yield an optimizer, the one that it wraps, the one that this wraps, and so on."""
    while optimizer is not None:
        yield optimizer
        optimizer = getattr(optimizer, "inner_optimizer", None)


def unwrapped(optimizer: Any) -> Any:
    """Return the innermost optimizer: without a loss scale and without gradstab round it."""
    return [optimizer, *wrappers_and_inner(optimizer)][-1]
