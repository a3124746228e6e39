"""Changes for findings: each rewrites a draft and shows itself as lines of code."""

import keras  # noqa: F401  first, so that gradstab's classes register in one order
