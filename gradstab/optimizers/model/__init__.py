"""The optimizer's knowledge of its model, and copies of the state that a forward pass changes."""

import keras  # noqa: F401  first, so that gradstab's classes register in one order
