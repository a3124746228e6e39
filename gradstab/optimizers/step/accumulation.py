"""Gradient accumulation: micro-batches summed into the window that counts as one step.

Keras clips and applies inside a condition that no strategy can hold. Here the sum over replicas
comes before the condition, for every micro-batch, and what follows it acts on the mean over the
window. The accumulators are the inner optimizer's own, so that a run can go on without gradstab in
the middle of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from keras import ops

from gradstab._nesting import parts
from gradstab._variables import is_overwritten, resource, value_of
from gradstab.keras_hooks.optimizer_state import accumulators, counter


def window_size(optimizer: Any) -> int:
    """Return how many micro-batches make a step: 1 without accumulation.

    Raises:
        ValueError: If the parts of a `MultiOptimizer` accumulate over different windows.
    """
    sizes = [part.gradient_accumulation_steps or 1 for part in parts(optimizer)]
    if len(set(sizes)) > 1:
        raise ValueError(
            "The optimizers of a MultiOptimizer must accumulate over the same number of "
            "micro-batches, since their gradients are measured and clipped together. Received: "
            f"gradient_accumulation_steps={sizes}. Give all of them the same"
        )
    return sizes[0] if sizes else 1


class Accumulators:
    """The inner optimizer's sums of gradients over the micro-batches of a window.

    Args:
        optimizer: The inner optimizer, built.
    """

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self.size = window_size(optimizer)
        self._sums: dict[int, Any] = {}
        for part in parts(optimizer) if self.size > 1 else ():
            if part.built:
                for variable, total in accumulators(part):
                    self._sums[id(resource(variable))] = total

    def ends_window(self) -> Any:
        """Whether the micro-batch at hand is the last of its window, a boolean scalar tensor."""
        count = value_of(counter(parts(self._optimizer)[0])) + 1
        return count % self.size == 0

    def totals(self, gradients: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
        """Return the sums with this micro-batch in them, dense; `None` where it has no gradient.

        Of a "gradient" that is the variable's next value, the largest counts, as in Keras.
        """
        result: list[Any] = []
        for gradient, variable in zip(gradients, variables, strict=True):
            if gradient is None:
                result.append(None)
                continue
            total = value_of(self._sums[id(resource(variable))])
            dense = tf.convert_to_tensor(gradient)
            is_next = is_overwritten(variable)
            result.append(ops.maximum(dense, total) if is_next else dense + total)
        return result

    def means(self, totals: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
        """Return what a whole window applies."""
        return [
            total if total is None or is_overwritten(variable) else total / self.size
            for total, variable in zip(totals, variables, strict=True)
        ]

    def keep(self, totals: Sequence[Any], variables: Sequence[Any]) -> None:
        """Write the sums of a window that goes on."""
        for total, variable in zip(totals, variables, strict=True):
            if total is not None:
                self._sums[id(resource(variable))].assign(total)

    def reset(self) -> None:
        """Begin a new window."""
        for total in self._sums.values():
            if total is not None:
                total.assign(ops.zeros(total.shape, dtype=total.dtype))

    def count(self) -> None:
        """Count a micro-batch, as Keras does for schedules and averages, without an update."""
        counted = {id(each): each for each in (self._optimizer, *parts(self._optimizer))}
        for each in counted.values():
            if each.built:
                counter(each).assign_add(1)
