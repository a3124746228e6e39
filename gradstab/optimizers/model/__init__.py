"""What an optimizer is told of its model, and the copies of what a forward pass changes."""

import keras  # noqa: F401  first, so that gradstab's classes register in one order
