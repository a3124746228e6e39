"""Scalars that leave a compiled step as one tensor, with the loss and the metrics.

Every output of a compiled function takes the host a hundredth of a small net's step, and on an
accelerator each is a transfer of its own. So there is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from keras import ops


def can_pack(value: Any) -> bool:
    """Whether a log is a float32 scalar tensor of a compiled step, which packing leaves exact."""
    return (
        isinstance(value, tf.Tensor)
        and not hasattr(value, "numpy")
        and value.dtype == tf.float32
        and value.shape.rank == 0
    )


def pack(scalars: Mapping[str, Any]) -> Any:
    """Return a float32 vector of scalar tensors, in their order."""
    return ops.stack([ops.cast(scalar, "float32") for scalar in scalars.values()])


def unpack(names: Sequence[str], vector: Any) -> dict[str, Any]:
    """Return the entries of a vector by name.

    On the host they are tensors, which Keras converts fastest. On another device they are numbers
    that bring the whole vector to the host once, when the first of them is read.
    """
    if _is_on_host(vector):
        return dict(zip(names, tf.raw_ops.Unpack(value=vector, num=len(names)), strict=True))
    fetched = _Fetched(vector)
    return {name: Entry(fetched, place) for place, name in enumerate(names)}


def _is_on_host(vector: Any) -> bool:
    return "CPU" in vector.device


class Entry:
    """A number for the logs: `float(entry)` or `np.array(entry)` waits for the device.

    Args:
        fetched: The vector that it is part of.
        place: Where in it.
    """

    def __init__(self, fetched: _Fetched, place: int) -> None:
        self._fetched = fetched
        self._place = place

    def __float__(self) -> float:
        return self._fetched.numbers()[self._place]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.array(self._fetched.numbers()[self._place], dtype or "float32")

    def __repr__(self) -> str:
        return repr(float(self))


class _Fetched:
    """A vector that is brought to the host once."""

    def __init__(self, vector: Any) -> None:
        self._vector = vector
        self._numbers: list[float] | None = None

    def numbers(self) -> list[float]:
        numbers = self._numbers
        if numbers is None:
            numbers = self._numbers = self._vector.numpy().tolist()
        return numbers
