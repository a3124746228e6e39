"""Optimizers that are stable by construction."""

import keras  # noqa: F401  first, so that gradstab's classes register in one order
