"""What a run that goes wrong is judged by, and the state that it goes back to."""

import keras  # noqa: F401  first, so that gradstab's classes register in one order

__all__: list[str] = []
