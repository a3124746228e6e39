"""Measurements of steps: counters, readings, and samples of some steps."""

import keras  # noqa: F401  first, so that gradstab's classes register in one order
