"""Arguments of the public functions, checked before Keras makes what it will of them.

The compiled step calls the functions behind these directly, with tensors of its own.
"""

from __future__ import annotations

import functools
import inspect
import numbers
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import keras
import numpy as np
from keras import ops

from gradstab._validation import check_float

Function = TypeVar("Function", bound=Callable[..., Any])

_KINDS = ("float", "bfloat", "int", "uint")
_DENSE = "Pass dense tensors: `tf.convert_to_tensor(gradient)` makes one of a sparse gradient"


def checked(function: Function) -> Function:
    """Return a function that refuses by name what is not a tensor, a list of them, or a bound."""
    signature = inspect.signature(function)
    checks = dict(_CHECKS)
    if "norm" in signature.parameters:
        checks["max_norm"] = _bound  # one for each norm will do

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # in whose own words the arguments are wrong
        for name, value in given.arguments.items():
            given.arguments[name] = checks[name](name, value)
        if {"norm", "max_norm"} <= set(given.arguments):
            _check_shapes(given.arguments["norm"], given.arguments["max_norm"])
        return function(*given.args, **given.kwargs)

    return call  # type: ignore[return-value]


def _tensors(name: str, values: Any) -> list[Any]:
    is_list = isinstance(values, Iterable) and not isinstance(values, str | bytes | dict | set)
    try:
        found = list(values) if is_list and not _is_sparse(values) else None
    except (TypeError, NotImplementedError):  # an array without axes, a symbolic tensor
        found = None
    if found is None:
        raise TypeError(f"`{name}` must be a list of tensors. Received: {_given(values)}")
    return [
        None if value is None else _tensor(f"{name}[{i}]", value) for i, value in enumerate(found)
    ]


def _tensor(name: str, value: Any) -> Any:
    if _is_sparse(value):
        raise TypeError(f"`{name}` must be a dense tensor. Received: {_given(value)}. {_DENSE}")
    if not hasattr(value, "dtype"):
        try:
            value = np.asarray(value)
        except (TypeError, ValueError):  # rows of unequal length
            value = None
    dtype = "" if value is None or keras.utils.is_keras_tensor(value) else _dtype(value)
    if not dtype.startswith(_KINDS):
        raise TypeError(f"`{name}` must be a tensor of real numbers. Received: {_given(value)}")
    return value


def _float32(name: str, value: Any) -> Any:
    return ops.cast(_tensor(name, value), "float32")


def _bound(name: str, value: Any) -> Any:
    if isinstance(value, numbers.Real) and not isinstance(value, np.generic):
        return check_float(name, value, allow_inf=True)
    value = _tensor(name, value)
    if isinstance(value, np.ndarray | np.generic) and not np.all(np.asarray(value) > 0):
        raise ValueError(f"`{name}` must be a positive float. Received: {_given(value)}")
    return value


def _order(name: str, value: Any) -> float:
    return check_float(name, value, allow_inf=True)


def _scalar_bound(name: str, value: Any) -> Any:
    value = _bound(name, value)
    if tuple(getattr(value, "shape", ())) != ():
        raise ValueError(f"`{name}` must be one number. Received: {_given(value)}")
    return value


def _check_shapes(norm: Any, max_norm: Any) -> None:
    shapes = [tuple(norm.shape), tuple(getattr(max_norm, "shape", ()))]
    if any(size is None for shape in shapes for size in shape):
        return
    try:
        np.broadcast_shapes(*shapes)
    except ValueError as error:
        raise ValueError(
            f"`max_norm` must broadcast against `norm`. Received: shapes {shapes[1]} and "
            f"{shapes[0]}"
        ) from error


def _is_sparse(value: Any) -> bool:
    return hasattr(value, "dense_shape") or hasattr(value, "nested_row_splits")


def _dtype(value: Any) -> str:
    try:
        return str(keras.backend.standardize_dtype(value.dtype))
    except (TypeError, ValueError):
        return ""


def _given(value: Any) -> str:
    text = " ".join(repr(value).split())
    return f"{text[:120]}{'...' * (len(text) > 120)} (a {type(value).__name__})"


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "values": _tensors,
    "value": _tensor,
    "norm": _float32,
    "ord": _order,
    "max_norm": _scalar_bound,
    "clip_value": _scalar_bound,
}
