"""Where the first value that was not finite came from, in a step that was refused for it."""

import keras  # noqa: F401  first, so that gradstab's classes register in one order

__all__: list[str] = []
