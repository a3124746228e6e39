"""Scalars that leave a compiled step as one tensor, and come to the host only if they are wanted.

Every output of a compiled function costs it some microseconds, and Keras converts each entry of a
batch's logs by itself. For a small net five scalars more took a thirtieth of the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from keras import ops


def pack(scalars: Mapping[str, Any]) -> Any:
    """Return a float32 vector of scalar tensors, in their order."""
    return ops.stack([ops.cast(scalar, "float32") for scalar in scalars.values()])


def unpack(names: Sequence[str], vector: Any) -> dict[str, Entry]:
    """Return the entries of a vector by name; none is brought to the host before it is read."""
    fetched = _Fetched(vector)
    return {name: Entry(fetched, place) for place, name in enumerate(names)}


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
        return float(self._fetched.numbers()[self._place])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.array(self._fetched.numbers()[self._place], dtype)

    def __repr__(self) -> str:
        return repr(float(self))


class _Fetched:
    """A vector that is brought to the host once."""

    def __init__(self, vector: Any) -> None:
        self._vector = vector
        self._numbers: np.ndarray[Any, Any] | None = None

    def numbers(self) -> np.ndarray[Any, Any]:
        numbers = self._numbers
        if numbers is None:
            numbers = self._numbers = np.asarray(ops.convert_to_numpy(self._vector))
        return numbers
