"""Normal numbers as a function of a counter, the same on every device and in every mode.

A generator with a state would give a sparse gradient other numbers than the dense one beside it,
and XLA other ones than a graph. Here each entry has its own number, which depends on the seed, the
step, the tensor and the entry's place alone: rows that are absent need none, and a step that is
taken again has the same ones.
"""

from __future__ import annotations

import math
from typing import Any

from keras import ops

_MASK = 0xFFFFFFFF
# An odd multiplier below 2^27, so that no product of it with 32 bits leaves int64.
_MULTIPLIER = 0x45D9F3B
_GOLDEN = 0x9E3779B9


def counter_normal(keys: Any, places: Any) -> Any:
    """Return one standard normal number per place.

    Two hashes of key and place give uniform numbers, the Box-Muller transform a normal one.

    Args:
        keys: Integer scalar tensors that name the stream, such as seed, step and tensor.
        places: Integer tensor of any shape: numbers of the entries.

    Returns:
        A float32 tensor of the shape of `places`.

    >>> import numpy as np
    >>> z = counter_normal([1, 2], np.arange(10_000)).numpy()
    >>> bool(abs(z.mean()) < 0.03), bool(abs(z.std() - 1.0) < 0.03)
    (True, True)
    """
    key = ops.cast(_GOLDEN, "int64")
    for each in keys:
        key = _mixed(ops.bitwise_xor(key, _mixed(ops.cast(each, "int64") + _GOLDEN)))
    places = 2 * ops.cast(places, "int64")
    first, second = (
        (ops.cast(_mixed(ops.bitwise_xor(_mixed(places + extra), key)), "float32") + 0.5) / 2.0**32
        for extra in (0, 1)
    )
    # Rounded to float32 a uniform number may be 1, never 0.
    radius = ops.sqrt(ops.maximum(-2.0 * ops.log(first), 0.0))
    return radius * ops.cos(2.0 * math.pi * second)


def _mixed(value: Any) -> Any:
    """Hash 32 bits, held in int64, to 32 bits."""
    value = ops.bitwise_and(value, _MASK)
    for _ in range(2):
        value = ops.bitwise_xor(value, ops.right_shift(value, 16))
        value = ops.bitwise_and(value * _MULTIPLIER, _MASK)
    return ops.bitwise_xor(value, ops.right_shift(value, 16))
