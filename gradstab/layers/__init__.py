"""Layers that share weights, and residual connections that start as the identity."""

import keras  # noqa: F401  first, so that gradstab's classes register in one order

from gradstab.layers.residual import ScaledResidual
from gradstab.layers.shared import SharedBlock, UseGradients
from gradstab.layers.tied import TiedDense, retie

__all__ = ["ScaledResidual", "SharedBlock", "TiedDense", "UseGradients", "retie"]
