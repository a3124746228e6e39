"""Skips steps that are not finite, once a run has shown one, with an optimizer not gradstab's.

A healthy run pays nothing for it: nothing is built into its step. Once a batch has made the state
NaN, and that was taken back, the step is traced anew with the question in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import tensorflow as tf

from gradstab._layers import all_layers
from gradstab.optimizers.compiled import branches
from gradstab.optimizers.model.binding import running_loss, trains_by_keras_step
from gradstab.optimizers.model.forward_state import ForwardState, changed_by_forward_pass
from gradstab.recovery.retrace import trace_anew

# Skips in a row beyond which the data are bad; that of `SkipNonFinite`.
_MOST_IN_A_ROW: Final = 50


class Veto:
    """Has a model's optimizer leave out steps whose gradient is not finite.

    A skipped step leaves weights, moments and iterations as they are, and puts back what its
    forward pass changed: BatchNorm's statistics and the mean loss.

    Args:
        model: A compiled and built model.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._optimizer = model.optimizer
        # In all, in a row, and the longest row.
        self._counts = tf.Variable(np.zeros(3, "int64"), trainable=False, name="skips")
        self._kept: ForwardState | None = None

    @property
    def can_install(self) -> bool:
        """Whether one optimizer, not in a loss scale, trains the model by Keras' step."""
        return (
            self._kept is None
            and trains_by_keras_step(self._model)
            and self._model.distribute_strategy.num_replicas_in_sync == 1
            and not hasattr(self._optimizer, "inner_optimizer")
            and getattr(self._optimizer, "gradient_accumulation_steps", None) is None
        )

    def install(self) -> None:
        """Build it into the step, which is traced anew."""
        apply = self._optimizer.apply
        kept = ForwardState(
            changed_by_forward_pass(list(all_layers(self._model))), running_loss(self._model)
        )
        self._kept = kept

        @branches.as_written
        def apply_if_finite(grads: Any, trainable_variables: Any = None) -> None:
            grads = list(grads)

            def applied() -> None:
                apply(grads, trainable_variables)
                kept.keep()
                self._count(0)

            def skipped() -> None:
                kept.restore()
                self._count(1)

            written = [*self._model.variables, *self._optimizer.variables, *kept.variables]
            branches.either(_all_finite(grads), applied, skipped, written)

        vars(self._optimizer)["apply"] = apply_if_finite
        trace_anew(self._model)

    def synchronize(self) -> None:
        """Learn that the state was put back: that is what a skipped step returns to."""
        if self._kept is not None:
            self._kept.synchronize()

    def uninstall(self) -> None:
        """Take it out of the optimizer."""
        if self._kept is not None:
            vars(self._optimizer).pop("apply", None)
            self._kept = None

    def state(self) -> list[Any]:
        """Return what a resumed run goes on with."""
        return [self._kept is not None, *self._counts.numpy().tolist()]

    def resume(self, state: list[Any]) -> None:
        """Go on with what `state` returned."""
        self._counts.assign(np.array(state[1:], "int64"))
        if state[0] and self.can_install:
            self.install()

    def skipped(self) -> int:
        """Return how many steps were skipped so far."""
        return int(self._counts.numpy()[0])

    def told(self) -> str | None:
        """Return that too many steps in a row were skipped, in words, or `None`."""
        in_all, _, longest = self._counts.numpy().tolist()
        if longest <= _MOST_IN_A_ROW:
            return None
        return (
            f"{longest} steps in a row had a gradient that was not finite and were skipped, "
            f"{in_all} in all, while the weights are finite: look at the data and the loss."
        )

    def _count(self, skip: int) -> None:
        in_all, in_a_row, longest = tf.unstack(self._counts.read_value())
        in_a_row = (in_a_row + 1) * skip
        new = [in_all + skip, in_a_row, tf.maximum(longest, in_a_row)]
        self._counts.assign(tf.stack(new))


def _all_finite(gradients: Sequence[Any]) -> Any:
    values = [
        gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
        for gradient in gradients
        if gradient is not None
    ]
    return tf.reduce_all(tf.stack([tf.reduce_all(tf.math.is_finite(value)) for value in values]))
