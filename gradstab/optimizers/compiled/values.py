"""Values of the compiled step: single rows of a variable, and what leaves the step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from gradstab._variables import value_of


def write_row(variable: Any, place: Any, row: Any) -> None:
    """Write one row of a variable in place; assigning would write all of them.

    Args:
        variable: A `keras.Variable` of shape (rows, columns).
        place: Which row, an integer scalar tensor.
        row: Its new values.
    """
    variable.value.scatter_update(tf.IndexedSlices(row, tf.convert_to_tensor(place)))


def gather_row(variable: Any, place: Any) -> Any:
    """Return one row of a variable without reading the others.

    Args:
        variable: A `keras.Variable` of shape (rows, columns).
        place: Which row, an integer scalar tensor.
    """
    return tf.gather(variable.value, place)


def to_host(variables: Sequence[Any]) -> list[np.ndarray[Any, Any]]:
    """Return the values of Keras variables as arrays, all fetched at once.

    Where there is an accelerator they come as one vector, in one transfer; in the host's own memory
    there is nothing to save by that.
    """
    if not tf.config.list_logical_devices("GPU"):
        return [value_of(variable).numpy() for variable in variables]
    flat = [tf.reshape(tf.cast(value_of(variable), tf.float64), (-1,)) for variable in variables]
    parts = np.split(tf.concat(flat, 0).numpy(), np.cumsum([int(each.shape[0]) for each in flat]))
    return [
        part.reshape(variable.shape).astype(variable.dtype)
        for part, variable in zip(parts, variables, strict=False)
    ]


def usable_here(tensor: Any | None) -> Any | None:
    """Return a scalar tensor if the function that is being traced made it, else `None`.

    The loss that a trainer showed in an earlier trace must not leak into this one.
    """
    if tensor is None or not tf.is_tensor(tensor) or tensor.shape.rank != 0:
        return None
    if tf.executing_eagerly():
        return None if tf.is_symbolic_tensor(tensor) else tensor
    graph = tf.compat.v1.get_default_graph()
    while graph is not None:
        if getattr(tensor, "graph", None) is graph:
            return tensor
        graph = getattr(graph, "outer_graph", None)  # A branch may use what is outside of it.
    return None
