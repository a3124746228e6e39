"""Dynamic loss scaling of float16 training, judged on the sum over all replicas.

Keras' `LossScaleOptimizer` asks the first replica alone whether its share is finite, has neither
floor nor ceiling, and does not call the optimizer inside it on an overflow, which then can neither
count the skip nor put anything back. So round an optimizer of gradstab's it leaves the whole step
to that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import ops

from gradstab._variables import value_of

FLOOR = 1.0
CEILING = 2.0**24


class LossScale:
    """The scale that the gradients of one step carry.

    Args:
        optimizer: The `keras.optimizers.LossScaleOptimizer`, built.

    Attributes:
        value: The scale, a float32 scalar tensor.
        at_floor: Whether it can't be halved any more, a boolean scalar tensor.
    """

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self.value = value_of(optimizer.dynamic_scale)
        self.at_floor = self.value <= FLOOR

    def update(self, bad: Any, loss: Any | None) -> None:
        """Halve the scale after an overflow; double it after enough steps without.

        A loss that was not finite before it was scaled says nothing of the scale.

        Args:
            bad: Whether a gradient of this step was not finite on any replica.
            loss: The loss of the step, without the scale; `None` where nobody showed it.
        """
        optimizer = self._optimizer
        steps = value_of(optimizer.step_counter)
        overflow = ops.logical_and(bad, ops.logical_not(_is_lost(loss)))
        grows = steps >= optimizer.dynamic_growth_steps - 1
        factor = ops.cast(ops.where(overflow, 0.5, ops.where(grows, 2.0, 1.0)), "float32")
        changed = ops.clip(self.value * factor, FLOOR, CEILING)
        starts_anew = ops.logical_or(overflow, grows)
        counted = ops.where(starts_anew, ops.zeros_like(steps), steps + 1)
        lost = _is_lost(loss)
        optimizer.dynamic_scale.assign(ops.where(lost, self.value, changed))
        optimizer.step_counter.assign(ops.where(lost, steps, counted))

    def to_record(self, bad: Any, loss: Any | None, vetoes: Sequence[Any]) -> dict[str, Any]:
        """Return what telemetry takes down of the scale in a step.

        Where the loss itself was not finite the cause is another, if the chain names one, and the
        skip counts towards the budget at once: no smaller scale would mend it.

        Args:
            bad: As in `update`.
            loss: As in `update`.
            vetoes: What the transforms say of the step.
        """
        lost = _is_lost(loss)
        named = ops.any(ops.stack(vetoes)) if vetoes else ops.convert_to_tensor(False)
        overflow = ops.logical_and(bad, ops.logical_not(ops.logical_and(lost, named)))
        return {"overflow": overflow, "at_floor": ops.logical_or(self.at_floor, lost)}


def _is_lost(loss: Any | None) -> Any:
    return ops.convert_to_tensor(False) if loss is None else ops.logical_not(ops.isfinite(loss))
