"""Small tensors of one shape side by side, so that one operation serves all of them.

Where tensors are many and small, most of the time goes into starting operations: the clip of a net
of fifty dense layers starts two for each bias of sixty-four numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import keras

from gradstab.keras_hooks.conditions import is_compiled_by_xla

# Fewer than these are not worth the two operations that put them together and apart.
_FEW: Final = 4


def alike(values: Sequence[Any], most_entries: int) -> list[list[int]]:
    """Return the places of tensors that are to be stacked, and of each other one on its own.

    XLA joins operations by itself; for it every tensor stays on its own.

    Args:
        values: Tensors; `None` has no place in the result.
        most_entries: Entries up to which a tensor is small.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    most = 0 if is_compiled_by_xla() else most_entries
    for place, value in enumerate(values):
        if value is None:
            continue
        shape = tuple(value.shape)
        is_small = all(size is not None for size in shape) and 0 < math.prod(shape) <= most
        dtype = keras.backend.standardize_dtype(value.dtype)
        key = (shape, dtype) if is_small else (place,)
        groups.setdefault(key, []).append(place)
    return [
        part
        for places in groups.values()
        for part in ([places] if len(places) >= _FEW else [[place] for place in places])
    ]
