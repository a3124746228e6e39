"""Rules on gradients and on updates, for the list of a `StabilizedOptimizer`."""

import keras  # noqa: F401  first, so that gradstab's classes register in one order

from gradstab.transforms.adaptive import AdaptiveGradientClipping, ClipByBlockRMS
from gradstab.transforms.automatic.outliers import LimitOutliers
from gradstab.transforms.automatic.overshoot import LimitOvershoot
from gradstab.transforms.automatic.rate_jumps import LimitRateJumps
from gradstab.transforms.base import Context, SeedSpec, StateSpec, Transform, VariableRole
from gradstab.transforms.bounds import Bound
from gradstab.transforms.clipping import ClipByGlobalNorm, ClipByNorm, ClipByValue
from gradstab.transforms.conditioning import AddGradientNoise, CentralizeGradients
from gradstab.transforms.measured import Measured
from gradstab.transforms.outliers import SkipOutliers
from gradstab.transforms.running import AdaGradientClipping, PercentileClipping, ZScoreClipping
from gradstab.transforms.selection import Only
from gradstab.transforms.skipping import SkipNonFinite
from gradstab.transforms.update import LimitUpdateRatio

__all__ = [
    "AdaGradientClipping",
    "AdaptiveGradientClipping",
    "AddGradientNoise",
    "Bound",
    "CentralizeGradients",
    "ClipByBlockRMS",
    "ClipByGlobalNorm",
    "ClipByNorm",
    "ClipByValue",
    "Context",
    "LimitOutliers",
    "LimitOvershoot",
    "LimitRateJumps",
    "LimitUpdateRatio",
    "Measured",
    "Only",
    "PercentileClipping",
    "SeedSpec",
    "SkipNonFinite",
    "SkipOutliers",
    "StateSpec",
    "Transform",
    "VariableRole",
    "ZScoreClipping",
]
