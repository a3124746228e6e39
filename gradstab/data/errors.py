"""The exception for missing or unusable data."""

from __future__ import annotations


class DataError(ValueError):
    """The data are missing, broken, or can't be split; the message names them and the fix.

    A wrong argument, such as a negative `batch_size`, is a plain `ValueError` or `TypeError`.
    """
