"""Finds, observes and measures models and optimizers that are not gradstab's."""

import keras  # noqa: F401  first, so that gradstab's classes register in one order
