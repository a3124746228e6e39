"""Coefficients that a person or a callback may change while a compiled step runs.

A step reads a Python number once, while it is traced. So a coefficient lives in a variable of its
own behind the attribute. No layer, model or optimizer tracks that variable: it is in no list of
weights and in no weights file; configs hold its number.
"""

from __future__ import annotations

import concurrent.futures
import inspect
from typing import Any

import keras

from gradstab._validation import check_float
from gradstab._variables import check_float32

_VARIABLES = "_coefficient_variables"


class Coefficient:
    """A non-negative, finite float attribute whose assignment acts in the compiled step.

    Reading gives the number that was assigned. Computations read the variable behind it through
    `HasCoefficients.coefficient_tensor`.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else instance.__dict__[self.name]

    def __set__(self, instance: Any, value: Any) -> None:
        number = check_float(self.name, value, include_minimum=True)
        check_float32(self.name, number, value)
        variables = instance.__dict__.setdefault(_VARIABLES, {})
        variable = variables.get(self.name)
        if variable is None:
            variables[self.name] = _variable(self.name, number)
        else:
            variable.assign(number)
        instance.__dict__[self.name] = number


class HasCoefficients:
    """What has coefficients: gives them to the compiled step, and to copies and configs."""

    @classmethod
    def coefficients(cls) -> list[str]:
        """Return the names of the arguments that can change during a compiled run."""
        return [
            name
            for owner in reversed(cls.__mro__)
            for name, value in vars(owner).items()
            if isinstance(value, Coefficient)
        ]

    def coefficient_tensor(self, name: str) -> Any:
        """Return the value of a coefficient, a float32 scalar, as the compiled step reads it."""
        return keras.ops.convert_to_tensor(self.__dict__[_VARIABLES][name])

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal object, with the coefficients of now."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def __getstate__(self) -> dict[str, Any]:
        # A copy gets variables of its own: changing one must not change the other.
        return {name: value for name, value in self.__dict__.items() if name != _VARIABLES}

    def __setstate__(self, state: dict[str, Any]) -> None:
        names = self.coefficients()
        self.__dict__.update({name: value for name, value in state.items() if name not in names})
        for name in names:
            setattr(self, name, state[name])

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


def _variable(name: str, number: float) -> Any:
    """Make a variable that belongs to nobody.

    In a thread of its own, since that knows neither the trace, nor the strategy, nor the scope of
    Keras' in which a regularizer may be made: a variable of these would end with the trace, be
    copied for every replica, or be refused.
    """
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as executor:
        # No autocast, since half precision would round it.
        made = executor.submit(
            keras.Variable, number, dtype="float32", trainable=False, autocast=False, name=name
        )
        return made.result()
