"""Where a symbolic tensor of a functional model comes from."""

from __future__ import annotations

from typing import Any, NamedTuple


class Origin(NamedTuple):
    """What made a symbolic tensor.

    Attributes:
        operation: The layer, model or operation.
        place: Place of the tensor among the operation's outputs.
        inputs: The symbolic tensors that the operation was called with.
    """

    operation: Any
    place: int
    inputs: list[Any]


def origin_of(tensor: Any) -> Origin | None:
    """Return what made a symbolic tensor, or `None` if it comes from no call."""
    history = getattr(tensor, "_keras_history", None)
    if history is None:
        return None
    operation, node, place = history
    return Origin(operation, place, operation._inbound_nodes[node].input_tensors)
