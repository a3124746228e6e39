"""Walks through the layers of a model, those inside others too; a pass that leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras


def all_layers(layer: Any) -> Iterator[Any]:
    """Yield a layer and all layers below it, each once."""
    seen: set[int] = set()
    pending = [layer]
    while pending:
        current = pending.pop()
        if id(current) not in seen:
            seen.add(id(current))
            yield current
            pending.extend(children(current))


def layers_in_order(layer: Any) -> list[Any]:
    """Return a layer and all below it, each once, in the order in which they are listed.

    That is the order of depth in sequential and functional models.
    """
    found: dict[int, Any] = {}
    pending = [layer]
    while pending:
        current = pending.pop()
        if id(current) not in found:
            found[id(current)] = current
            below = current.layers if isinstance(current, keras.Model) else children(current)
            pending.extend(reversed(below))
    return list(found.values())


def children(layer: Any) -> list[Any]:
    """Return the layers that a layer holds as attributes, in lists, tuples and dicts too."""
    found: list[Any] = []
    for value in list(vars(layer).values()):
        if isinstance(value, keras.Layer):
            found.append(value)
        elif isinstance(value, list | tuple):
            found.extend(item for item in value if isinstance(item, keras.Layer))
        elif isinstance(value, dict):
            found.extend(item for item in value.values() if isinstance(item, keras.Layer))
    return [child for child in found if child is not layer]


def forward_scope(model: Any) -> keras.StatelessScope:
    """Return a scope in which forward pass and loss leave metrics, statistics and seeds alone.

    The loss includes penalties on weights, and what layers add to it.
    """
    # Within such a scope Keras finds no value of a regularized weight but one that is given.
    regularized = [v for v in model.trainable_variables if v.regularizer is not None]
    return keras.StatelessScope([(v, v) for v in regularized], collect_losses=True)
