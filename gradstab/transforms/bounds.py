"""Bounds that a person or a callback may change while a compiled step runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gradstab._variables import check_float32, held_number


class Bound:
    """A float hyperparameter; assigning it takes effect in the compiled step, and is saved.

    Before an optimizer is built it is an ordinary attribute. Building gives it a float32 variable.
    From then on assigning writes the variable. Reading returns the assigned number, or the
    variable's value if that was loaded or changed elsewhere. Computations read the variable through
    `Transform.bound`.

    Args:
        check: Returns the value as a float or raises, given the attribute's name and the value.
    """

    def __init__(self, check: Callable[[str, Any], float]) -> None:
        self._check = check

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        number: float = instance.__dict__[self.name]
        variable = instance.bound_variables.get(self.name)
        if variable is None:
            return number
        return held_number(variable, number)

    def __set__(self, instance: Any, value: Any) -> None:
        number = check_float32(self.name, self._check(self.name, value), value)
        instance.__dict__[self.name] = number
        variable = instance.bound_variables.get(self.name)
        if variable is not None:
            variable.assign(number)
