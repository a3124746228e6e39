"""What steps measured: counters, readings, closer looks at some of the steps."""

import keras  # noqa: F401  first, so that gradstab's classes register in one order
