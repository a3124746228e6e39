"""The losses of the latest steps of an optimizer that is not gradstab's, noted in the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import tensorflow as tf

from gradstab.recovery.retrace import trace_anew

# Steps that are kept: more than lie between two looks.
_CAPACITY: Final = 1024


class StepLosses:
    """Notes the loss of each step while a run lasts, and changes nothing of the step.

    Keras' own `train_step` asks its optimizer to scale the loss. While a run lasts that method of
    this one optimizer notes the loss on the way. A step of a user's own that does not ask shows no
    losses.

    Args:
        model: A compiled model whose optimizer is not gradstab's.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._optimizer = model.optimizer
        self._ring = tf.Variable(tf.zeros((_CAPACITY,)), trainable=False, name="step_losses")
        self._count = tf.Variable(0, dtype=tf.int64, trainable=False, name="steps_noted")
        self._seen = 0
        self._original: Callable[[Any], Any] | None = None

    def attach(self) -> None:
        """Begin to note, in steps that are traced from now on; older ones are traced anew."""
        if self._model.distribute_strategy.num_replicas_in_sync > 1 or self._original is not None:
            return  # The replicas would each write a share of the loss.
        self._original = original = self._optimizer.scale_loss

        def noted(loss: Any) -> Any:
            self._note(loss)
            return original(loss)

        vars(self._optimizer)["scale_loss"] = noted
        trace_anew(self._model)

    def detach(self) -> None:
        """Note no more."""
        if self._original is not None:
            vars(self._optimizer).pop("scale_loss", None)
            self._original = None
            trace_anew(self._model)

    def read(self) -> np.ndarray[Any, Any]:
        """Return the losses since the last time, oldest first."""
        losses = self.since(self._seen)[1]
        self._seen = self.count
        return losses

    @property
    def count(self) -> int:
        """How many there were."""
        return int(self._count.numpy())

    def since(self, number: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return numbers, from 0, and losses of the steps since one, as far as they are kept."""
        count = self.count
        numbers = np.arange(max(number, count - _CAPACITY), count)
        return numbers, np.asarray(self._ring.numpy())[numbers % _CAPACITY]

    def _note(self, loss: Any) -> None:
        place = tf.reshape(self._count % _CAPACITY, (1,))
        value = tf.reshape(tf.cast(tf.stop_gradient(loss), tf.float32), (1,))
        self._ring.scatter_update(tf.IndexedSlices(value, place))
        self._count.assign_add(1)
