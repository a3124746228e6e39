"""Penalties on weights that stay finite in half precision, with coefficients that can change."""

import keras  # noqa: F401  first, so that gradstab's classes register in one order

from gradstab.regularizers.orthogonality import Orthogonal, SpectralNorm
from gradstab.regularizers.penalties import L1, L1L2, L2

__all__ = ["L1", "L1L2", "L2", "Orthogonal", "SpectralNorm"]
