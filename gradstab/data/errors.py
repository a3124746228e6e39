"""What is raised when data can't be had or used."""

from __future__ import annotations


class DataError(ValueError):
    """The data is not there, is broken, or can't be split; the message names it and the fix.

    A wrong argument, such as a negative `batch_size`, is a plain `ValueError` or `TypeError`.
    """
