"""Hooks into Keras and TensorFlow: every private name that gradstab uses, and nothing else."""

import keras  # noqa: F401  first, so that gradstab's classes register in one order
