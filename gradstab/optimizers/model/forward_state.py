"""State that changes before an optimizer can veto: BatchNorm's statistics, the displayed loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import keras
from keras import ops

from gradstab._replicas import strategy_of
from gradstab._variables import value_of

# Less than the weight of any example.
_NOTHING: Final = 1e-30


class ForwardState:
    """Copies of variables from after the last applied step, which a skip restores.

    The copies are not saved with the optimizer: they are what the model's file holds anyway, and an
    optimizer that was bound must load into one that was not.

    Args:
        variables: Variables that a forward pass may change.
        running_loss: Sum and count of the mean loss in the logs, or nothing. They are set to zero
            when an epoch begins, of which nobody tells.
    """

    def __init__(self, variables: Sequence[Any] = (), running_loss: Sequence[Any] = ()) -> None:
        self._size = len(variables)
        self.variables = (*variables, *running_loss)
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

    def holds(self, variables: Sequence[Any], running_loss: Sequence[Any] = ()) -> bool:
        """Whether these are the variables that are kept."""
        return [id(v) for v in self.variables] == [id(v) for v in (*variables, *running_loss)]

    def keep(self) -> None:
        """Copy, inside the step, once it is applied."""
        for variable, copy in zip(self.variables, self._copies, strict=True):
            copy.assign(variable)

    def restore(self) -> None:
        """Put back, inside the step, once it is skipped."""
        pairs = list(zip(self.variables, self._copies, strict=True))
        for variable, copy in pairs[: self._size]:
            variable.assign(copy)
        if len(pairs) > self._size:
            self._restore_loss(*pairs[self._size :])

    @property
    def of_layers(self) -> tuple[Any, ...]:
        """The variables that a forward pass may change, without the running loss."""
        return self.variables[: self._size]

    @property
    def applied_nothing(self) -> bool:
        """Whether no step of this epoch was applied, so that it has no mean loss to show."""
        return len(self.variables) > self._size and bool(value_of(self.variables[-1]) < _NOTHING)

    def _restore_loss(self, totals: tuple[Any, Any], counts: tuple[Any, Any]) -> None:
        """Take the batch out of the mean loss.

        Every batch adds to the count. If it is no larger than after the last applied step, it was
        set to zero since, and this batch is all that there is. Then the last epoch's mean stands in
        with next to no weight, which vanishes beside that of the first applied step.
        """
        (total, kept_total), (count, kept_count) = totals, counts
        before = value_of(kept_total)
        counted = value_of(kept_count)
        is_same_epoch = value_of(count) > counted
        weight = ops.where(counted > 0, _NOTHING / 2, 0.0)
        mean = before / ops.maximum(counted, _NOTHING)
        total.assign(ops.where(is_same_epoch, before, mean * weight))
        count.assign(ops.where(is_same_epoch, counted, weight))

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
