"""Rules on gradients and on updates, to be listed in a `StabilizedOptimizer`."""

import keras  # noqa: F401  first, so that gradstab's classes register in one order

from gradstab.transforms.base import Context, SeedSpec, StateSpec, Transform, VariableRole
from gradstab.transforms.bounds import Bound
from gradstab.transforms.clipping import ClipByGlobalNorm, ClipByNorm, ClipByValue
from gradstab.transforms.measured import Measured
from gradstab.transforms.skipping import SkipNonFinite
from gradstab.transforms.update import LimitUpdateRatio

__all__ = [
    "Bound",
    "ClipByGlobalNorm",
    "ClipByNorm",
    "ClipByValue",
    "Context",
    "LimitUpdateRatio",
    "Measured",
    "SeedSpec",
    "SkipNonFinite",
    "StateSpec",
    "Transform",
    "VariableRole",
]
