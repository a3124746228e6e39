"""Training with the whole loop on the device, and run directories that survive a kill."""

import keras  # noqa: F401  first, so that gradstab's classes register in one order

from gradstab.training.loop import train

__all__ = ["train"]
