"""One step: sum, accumulate, measure, transform, judge, apply or leave, record."""

import keras  # noqa: F401  first, so that gradstab's classes register in one order
