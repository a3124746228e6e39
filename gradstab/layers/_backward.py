"""What a layer needs to look at its own gradient: raw weights, and sums over replicas."""

from __future__ import annotations

from typing import Any, final

import keras

from gradstab._variables import value_of


@final
class RawValues(keras.layers.Layer):
    """Reads variables in the dtype in which they are kept, also where Keras casts what is read.

    Inside the call of a layer of a mixed policy every variable is read in half precision. A layer
    with `autocast=False` is let off that, but only when it is called from inside such a layer.
    """

    def __init__(self) -> None:
        super().__init__(autocast=False, dtype="float32", name="raw_values")
        self._read: Any = None

    def call(self, inputs: Any) -> list[Any]:
        """Return the values of the variables, whatever the inputs are."""
        return [value_of(variable) for variable in self._read()]

    def of(self, variables: list[Any], anchor: Any) -> list[Any]:
        """Return values of variables as tensors.

        Args:
            variables: Keras variables.
            anchor: Any tensor, since a layer is called on tensors.
        """
        self._read = lambda: variables
        return list(self(anchor))
