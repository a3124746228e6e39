"""Checks of arrays and image sizes that a person gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gradstab._validation import check_int


def check_image_size(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Return height and width, or `None` for images as they are; raise if it is neither."""
    if image_size is None:
        return None
    sides = image_size if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    if len(sides) != 2:
        raise ValueError(
            f"`image_size` must be (height, width) or one number. Received: image_size={image_size}"
        )
    return check_int("image_size[0]", sides[0]), check_int("image_size[1]", sides[1])


def check_arrays(
    inputs_name: str, inputs: npt.ArrayLike, labels_name: str, labels: npt.ArrayLike
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return inputs, bytes or float32, and labels; raise if they can't be examples and classes."""
    x, y = np.asarray(inputs), np.asarray(labels)
    if not (np.issubdtype(x.dtype, np.integer) or np.issubdtype(x.dtype, np.floating)):
        raise TypeError(f"`{inputs_name}` must hold real numbers. Received: dtype {x.dtype}")
    if not np.issubdtype(y.dtype, np.integer):
        raise TypeError(
            f"`{labels_name}` must hold integers, the number of each example's class. Received: "
            f"dtype {y.dtype}"
        )
    if x.ndim < 2 or y.ndim != 1 or len(x) != len(y) or len(y) == 0:
        raise ValueError(
            f"`{inputs_name}` must have the shape (n, ...) and `{labels_name}` (n,), with n above "
            f"0. Received: shapes {x.shape} and {y.shape}"
        )
    if y.min() < 0:
        raise ValueError(f"`{labels_name}` must count from 0. Received: {y.min()}")
    return (x if x.dtype == np.uint8 else x.astype(np.float32)), y
