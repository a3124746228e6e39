"""One line of a run record, taken apart and checked: it is data from outside."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from typing import Any, Final, TypeGuard

import numpy as np

from gradstab.monitoring.entries import Array, Totals

_NONFINITE: Final = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class BadLineError(Exception):
    """A line that is not what the schema says."""


def parse(line: bytes) -> dict[str, Any]:
    """Return the object on a line.

    Raises:
        BadLineError: If it holds none.
    """

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        fields = json.loads(line.decode(), parse_constant=refuse)
    except (ValueError, RecursionError):
        raise BadLineError("not JSON") from None
    if not isinstance(fields, dict):
        raise BadLineError("not a JSON object")
    return fields


def mapping(fields: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the object in a field, an empty one where the field is missing."""
    found = fields.get(name, {})
    if not isinstance(found, dict):
        raise BadLineError(f"`{name}` is not an object")
    return found


def is_count(value: Any) -> TypeGuard[int]:
    """Whether a value is a whole number that is not negative."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def count(fields: dict[str, Any], name: str, problem: str) -> int:
    """Return the whole number in a field; `problem` says what is wrong without one."""
    value = fields.get(name)
    if not is_count(value):
        raise BadLineError(problem)
    return value


def number(value: Any) -> float:
    """Return a number, which may be one of those that JSON lacks."""
    if isinstance(value, float):
        return value
    if isinstance(value, str) and value in _NONFINITE:
        return _NONFINITE[value]
    if isinstance(value, int) and abs(value) < 2**63:
        return float(value)
    raise BadLineError(f"needs numbers, not {value!r}"[:80])


def numbers(values: Any, length: int) -> Array:
    """Return a list of numbers of a given length."""
    if not isinstance(values, list) or len(values) != length:
        raise BadLineError(f"needs lists of {length} numbers, one for each name in the header")
    if all(type(value) is float or type(value) is int for value in values):
        with contextlib.suppress(OverflowError):
            return np.array(values, "float64")
    return np.array([number(value) for value in values], "float64")


def totals(fields: dict[str, Any]) -> Totals:
    """Return the totals in a line's field `totals`; what it does not know is left out."""
    given, known = mapping(fields, "totals"), dict[str, Any]()
    for field in dataclasses.fields(Totals):
        value = given.get(field.name)
        if field.name.endswith("_by"):
            value = mapping(given, field.name)
            valid = all(is_count(each) for each in value.values())
        elif field.name in ("steps", "clipped", "limited", "skipped"):
            value = 0 if value is None else value
            valid = is_count(value)
        elif field.name.endswith("_step"):
            valid = value is None or is_count(value)
        else:
            value, valid = None if value is None else number(value), True
        if not valid:
            raise BadLineError(f"`{field.name}` of the totals is no count")
        known[field.name] = value
    return Totals(**known)
