"""The rules that `stabilize(clip="auto")` lists. Each acts on evidence of harm in the run itself.

What is in line with the run so far is left alone, and so is a run of which nothing is known yet.
"""

import keras  # noqa: F401  first, so that gradstab's classes register in one order

from gradstab.transforms.automatic.outliers import LimitOutliers
from gradstab.transforms.automatic.overshoot import LimitOvershoot
from gradstab.transforms.automatic.rate_jumps import LimitRateJumps

__all__ = ["LimitOutliers", "LimitOvershoot", "LimitRateJumps"]
