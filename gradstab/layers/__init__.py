"""Layers that share weights, and residual blocks whose branches begin small."""

import keras  # noqa: F401  first, so that gradstab's classes register in one order

from gradstab.layers.residual import ScaledResidual
from gradstab.layers.shared import SharedBlock, UseGradients
from gradstab.layers.tied import TiedDense, tie_weights

__all__ = ["ScaledResidual", "SharedBlock", "TiedDense", "UseGradients", "tie_weights"]
