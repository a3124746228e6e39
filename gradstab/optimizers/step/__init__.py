"""One step: sum, accumulate, measure, transform, decide, apply or skip, record."""

import keras  # noqa: F401  first, so that gradstab's classes register in one order
