"""Fills the looks: everything in the diagnosis that needs Keras."""

import keras  # noqa: F401  first, so that gradstab's classes register in one order
