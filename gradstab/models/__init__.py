"""Models that train from the first step.

Example:
    >>> from gradstab.models import cnn_classifier
    >>> model = cnn_classifier((28, 28, 1), 10, rescale=1 / 255)
    >>> model.output_shape
    (None, 10)
"""

import keras  # noqa: F401  first, so that gradstab's classes register in one order

from gradstab.models.cnn import cnn_classifier

__all__ = ["cnn_classifier"]
