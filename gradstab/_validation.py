"""Argument checks with one form of message: what is expected, then what was given."""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection
from typing import Any


def _fail(kind: type[Exception], name: str, expected: str, value: Any, fix: str = "") -> None:
    message = f"`{name}` must be {expected}. Received: {name}={_shown(value)}"
    raise kind(f"{message}. {fix}" if fix else message)


def _shown(value: Any) -> str:
    """Return what was given on one line, cut where it is long: arrays are."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 200 else f"{text[:200]}..."


def check_float(
    name: str,
    value: Any,
    *,
    minimum: float = 0.0,
    maximum: float = math.inf,
    include_minimum: bool = False,
    below: float = math.inf,
    allow_inf: bool = False,
    fix: str = "",
) -> float:
    """Return `value` as a float, or raise with the range that `name` has to lie in.

    Args:
        name: The argument's name, for the message.
        value: What the caller gave; any real number but a bool.
        minimum: Lower end of the range.
        maximum: Upper end of the range, included when it is finite.
        include_minimum: Whether `minimum` itself is allowed.
        below: Upper end of the range, where it is not included.
        allow_inf: Whether positive infinity is allowed.
        fix: A sentence that ends the message.

    Raises:
        TypeError: If `value` is not a real number.
        ValueError: If `value` is NaN or outside the range.
    """
    sign = "at least" if include_minimum else "above"
    if minimum == 0.0 and maximum == below == math.inf:
        expected = "a non-negative float" if include_minimum else "a positive float"
    elif maximum == math.inf:
        expected = f"a float {sign} {minimum:g}"
        expected += "" if below == math.inf else f" and below {below:g}"
    else:
        expected = f"a float {sign} {minimum:g} and at most {maximum:g}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        _fail(TypeError, name, expected, value, fix)
    try:
        number = float(value)
    except OverflowError:  # an integer beyond all floats
        number = math.inf if value > 0 else -math.inf
    too_small = number < minimum or (number == minimum and not include_minimum)
    if math.isnan(number) or too_small or number > maximum or number >= below < math.inf:
        _fail(ValueError, name, expected, value, fix)
    if math.isinf(number) and not allow_inf:
        _fail(ValueError, name, f"{expected} and finite", value, fix)
    return number


def check_int(name: str, value: Any, *, minimum: int = 1, fix: str = "") -> int:
    """Return `value` as an int of at least `minimum`, or raise.

    Raises:
        TypeError: If `value` is not an integer (a bool is none).
        ValueError: If `value` is below `minimum`.
    """
    expected = "a positive integer" if minimum == 1 else f"an integer of at least {minimum}"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        _fail(TypeError, name, expected, value, fix)
    if value < minimum:
        _fail(ValueError, name, expected, value, fix)
    return int(value)


def check_bool(name: str, value: Any, *, fix: str = "") -> bool:
    """Return `value` if it is `True` or `False`, or raise `TypeError`."""
    if not isinstance(value, bool):
        _fail(TypeError, name, "True or False", value, fix)
    return bool(value)


def check_choice(name: str, value: Any, choices: Collection[Any], *, fix: str = "") -> Any:
    """Return `value` if it is one of `choices`, or raise `ValueError` that lists them."""
    # Nothing else: an array compares with a word entry by entry.
    is_scalar = value is None or isinstance(value, str | numbers.Number)
    if not is_scalar or value not in choices:
        _fail(ValueError, name, f"one of {', '.join(map(repr, choices))}", value, fix)
    return value
