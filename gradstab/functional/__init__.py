"""Pure mathematics on lists of tensors, in `keras.ops` alone."""

import keras  # noqa: F401  first, so that gradstab's classes register in one order

from gradstab.functional import clipping as _clipping
from gradstab.functional import finite as _finite
from gradstab.functional import norms as _norms
from gradstab.functional._checked import checked as _checked

clip_by_global_norm = _checked(_clipping.clip_by_global_norm)
clip_by_norm = _checked(_clipping.clip_by_norm)
clip_by_value = _checked(_clipping.clip_by_value)
clip_factor = _checked(_clipping.clip_factor)
all_finite = _checked(_finite.all_finite)
finite = _checked(_finite.finite)
global_norm = _checked(_norms.global_norm)
norm = _checked(_norms.norm)
norms = _checked(_norms.norms)

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
