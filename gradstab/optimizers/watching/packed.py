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


class StepLogs(dict[str, Any]):
    """Logs of a step of which some are entries of a vector, on the host or elsewhere.

    Keras goes through the items of what a step returns, once, while the next step runs already;
    then the whole vector is brought to the host. Taking it apart any sooner would hold that step
    up. Whoever reads single entries gets them as numbers.

    Args:
        logs: Logs that stand by themselves.
        names: Names of the entries.
        vector: A float32 vector.
    """

    def __init__(self, logs: Mapping[str, Any], names: Sequence[str], vector: Any) -> None:
        super().__init__(logs)
        self._fetched = _Fetched(vector)
        self._names = names
        self.update((name, Entry(self._fetched, place)) for place, name in enumerate(names))

    def items(self) -> Any:
        """Return all logs with their names."""
        numbers = map(_Number, self._fetched.numbers())
        return {**self, **dict(zip(self._names, numbers, strict=True))}.items()


# TensorFlow has no public base class of what it takes for tensors; without it logs are but slower.
_TensorType: Any = getattr(getattr(tf.__internal__, "types", None), "Tensor", object)


class _Number(float, _TensorType):
    """A number that counts as a tensor.

    Keras asks of every log of every step whether it is one, and TensorFlow needs 0.1 microseconds
    to say yes and 7 to say no, in Python, while the next step waits for the interpreter.
    """


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
