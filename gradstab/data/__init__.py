"""Labelled data as `tf.data` pipelines, split by seed, in an order that a resumed run sees again.

Example:
    >>> from gradstab.data import load
    >>> datasets = load("digits")
    >>> datasets
    Datasets(name='digits', input_shape=(8, 8, 1), num_classes=10, train=1257, validation=180, test=360)
    >>> images, labels = next(iter(datasets.train))
    >>> images.shape, labels.shape
    (TensorShape([32, 8, 8, 1]), TensorShape([32]))
"""  # noqa: E501  a `repr` can't be broken

import keras  # noqa: F401  first, so that gradstab's classes register in one order

from gradstab.data.bad_examples import BadExample, BadExamples
from gradstab.data.container import Datasets
from gradstab.data.datasets import from_arrays, load
from gradstab.data.errors import DataError

__all__ = ["BadExample", "BadExamples", "DataError", "Datasets", "from_arrays", "load"]
