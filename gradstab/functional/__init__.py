"""Pure mathematics on lists of tensors, in `keras.ops` alone."""

import keras  # noqa: F401  first, so that gradstab's classes register in one order

from gradstab.functional.clipping import (
    clip_by_global_norm,
    clip_by_norm,
    clip_by_value,
    clip_factor,
)
from gradstab.functional.finite import all_finite, finite
from gradstab.functional.norms import global_norm, norm, norms

__all__ = [
    "all_finite",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "clip_factor",
    "finite",
    "global_norm",
    "norm",
    "norms",
]
