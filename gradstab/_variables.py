"""What every room asks of a variable: its value, what holds it, its path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops


def value_of(variable: Any) -> Any:
    """Return the value of a variable as it is now, as a tensor.

    `ops.convert_to_tensor` gives a Keras variable back as it is, to be read again wherever it is
    used: for a count of steps, once for every variable of a model.

    Args:
        variable: A Keras variable, one of the backend's own, or a tensor.
    """
    value = variable.value if isinstance(variable, keras.Variable) else variable
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.convert_to_tensor(value)
    return ops.convert_to_tensor(value)


def resource(variable: Any) -> Any:
    """Return the backend's variable behind a Keras variable; a bare one as it is."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def variable_path(variable: Any) -> str:
    """Return the path of a Keras variable, or the name of a bare one of the backend's."""
    return str(getattr(variable, "path", variable.name))


def distinct(paths: Sequence[str]) -> list[str]:
    """Number the paths that occur twice, as those of bare TensorFlow variables do."""
    seen: dict[str, int] = {}
    result = []
    for path in paths:
        seen[path] = seen.get(path, 0) + 1
        result.append(path if seen[path] == 1 else f"{path} ({seen[path]})")
    return result


def is_overwritten(variable: Any) -> bool:
    """Whether the "gradient" is the variable's next value, as of Keras' float8 scales."""
    return bool(getattr(variable, "overwrite_with_gradient", False))


def check_float32(name: str, number: float, given: Any) -> float:
    """Return a float that a float32 variable is to hold, or raise if it can't.

    Args:
        name: The argument's name, for the message.
        number: The float.
        given: What the caller gave, for the message.

    Raises:
        ValueError: If it would become infinite or zero.
    """
    with np.errstate(over="ignore"):
        held = np.float32(number)
    if (np.isinf(held) and not np.isinf(number)) or (held == 0.0 and number != 0.0):
        raise ValueError(
            f"`{name}` must be a number that float32 can hold, in which the step is "
            f"computed. Received: {name}={given!r}"
        )
    return number


def held_number(variable: Any, assigned: float) -> float:
    """Return the number that a float32 variable stands for.

    It is the one that was assigned last, 0.1 and not the float32 next to it, unless the variable
    was loaded or changed elsewhere.

    Args:
        variable: The variable.
        assigned: The Python float that was assigned last; returned while a step is traced, where
            no variable can be read.
    """
    try:
        held = np.float32(ops.convert_to_numpy(variable))
    except NotImplementedError:  # of TensorFlow, for a tensor without a value yet
        return assigned
    return assigned if held == np.float32(assigned) else float(held)
