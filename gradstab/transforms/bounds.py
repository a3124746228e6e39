"""Bounds that a person or a callback may change while a compiled step runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


class Bound:
    """A float hyperparameter whose assignment acts in the compiled step and is saved.

    Before an optimizer is built it is an ordinary attribute. Building gives it a float32 variable;
    from then on assigning writes the variable, and reading gives the number that was assigned, or
    what the variable holds if it was loaded or changed elsewhere. Computations read the variable
    through `Transform.bound`.

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
        held = np.float32(variable.numpy())
        # 0.1 must come back as 0.1, not as the float32 next to it.
        return number if held == np.float32(number) else float(held)

    def __set__(self, instance: Any, value: Any) -> None:
        number = self._check(self.name, value)
        with np.errstate(over="ignore"):
            held = np.float32(number)
        if (np.isinf(held) and not np.isinf(number)) or (held == 0.0 and number != 0.0):
            raise ValueError(
                f"`{self.name}` must be a number that float32 can hold, in which the step is "
                f"computed. Received: {self.name}={value!r}"
            )
        instance.__dict__[self.name] = number
        variable = instance.bound_variables.get(self.name)
        if variable is not None:
            variable.assign(number)
