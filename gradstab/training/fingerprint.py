"""A number by which data are told from other data when a run is resumed."""

from __future__ import annotations

import math
import zlib
from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf

# Arrays beyond this are known by a part of their rows.
_MOST_BYTES: Final = 1 << 28


def fingerprint_of(batch: Any) -> str | None:
    """Return a number made of tensors, or `None` if one has no array (ragged or sparse ones).

    Args:
        batch: A structure of tensors with examples along the first axis.
    """
    leaves = [leaf for leaf in keras.tree.flatten(batch) if leaf is not None]
    if not all(tf.is_tensor(leaf) and hasattr(leaf, "numpy") for leaf in leaves):
        return None
    step = max(1, math.ceil(sum(map(_bytes, leaves)) / _MOST_BYTES))
    total = 0
    for leaf in leaves:
        array = np.ascontiguousarray((leaf[::step] if leaf.shape.rank else leaf).numpy())
        is_text = array.dtype == object
        content = repr(array.tolist()).encode() if is_text else array.tobytes()
        total = zlib.crc32(content, zlib.crc32(f"{leaf.shape} {array.dtype}".encode(), total))
    return f"{len(leaves)} arrays of crc32 {total:08x}"


def _bytes(tensor: Any) -> int:
    return int(np.prod(tensor.shape)) * int(tensor.dtype.size or 1)
