"""Detection of faults in a run, and the snapshots that it is rolled back to."""

import keras  # noqa: F401  first, so that gradstab's classes register in one order

__all__: list[str] = []
