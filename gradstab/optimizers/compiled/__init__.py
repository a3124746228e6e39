"""What a compiled step needs of TensorFlow: conditions, rows, sparse gradients."""

import keras  # noqa: F401  first, so that gradstab's classes register in one order
