"""Models and optimizers that are not gradstab's: found, observed, measured."""

import keras  # noqa: F401  first, so that gradstab's classes register in one order
