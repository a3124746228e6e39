"""What a forward pass changes before any optimizer can veto: BatchNorm's moving statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops


class ForwardState:
    """Copies of variables as they were after the last applied step, to be put back by a skip.

    The copies are not saved with the optimizer: they are what the model's file holds anyway, and an
    optimizer that was bound must load into one that was not.

    Args:
        variables: Variables that a forward pass may change.
    """

    def __init__(self, variables: Sequence[Any] = ()) -> None:
        self.variables = tuple(variables)
        self._copies: list[Any] = []
        for variable in self.variables:
            with strategy_of(variable).scope():
                self._copies.append(
                    keras.Variable(
                        ops.zeros(variable.shape, variable.dtype),
                        dtype=variable.dtype,
                        trainable=False,
                        name=f"last_applied_{variable.name}",
                    )
                )
        self.synchronize()

    def holds(self, variables: Sequence[Any]) -> bool:
        """Whether these are the variables that are kept."""
        return [id(v) for v in self.variables] == [id(v) for v in variables]

    def keep(self) -> None:
        """Copy, inside the step, once it is applied."""
        for variable, copy in zip(self.variables, self._copies, strict=True):
            copy.assign(variable)

    def restore(self) -> None:
        """Put back, inside the step, once it is skipped."""
        for variable, copy in zip(self.variables, self._copies, strict=True):
            variable.assign(copy)

    def synchronize(self) -> None:
        """Copy from outside a step: weights may have been loaded since the last one."""
        if self.variables:
            # On each replica its own: unless they are synchronized, statistics differ.
            strategy_of(self.variables[0]).run(self.keep)


def changed_by_forward_pass(layers: Sequence[Any]) -> list[Any]:
    """Return the variables of layers that a forward pass in training may change.

    That is what layers in training hold beside their trainable weights. The weights of a frozen
    layer do not change, and random seeds may.

    Args:
        layers: All layers of a model, nested ones too.
    """
    frozen = {id(v) for layer in layers if not layer.trainable for v in layer.weights}
    found: dict[int, Any] = {}
    for layer in layers:
        if layer.trainable:
            found.update((id(v), v) for v in layer.non_trainable_weights if id(v) not in frozen)
    return list(found.values())


def strategy_of(variable: Any) -> Any:
    """Return the strategy under which a variable was made."""
    value = variable.value if isinstance(variable, keras.Variable) else variable
    return getattr(value, "distribute_strategy", None) or tf.distribute.get_strategy()
