"""`LossScaleOptimizer` leaves its step to the optimizer of gradstab's that stands in it."""

from __future__ import annotations

import functools
from typing import Any

import keras
import tensorflow as tf


@functools.cache
def hand_over_to(ours: type[Any]) -> None:
    """Have every `LossScaleOptimizer` that stands round one of `ours` leave the step to it.

    `compile` builds the pair, or a person does, and nothing tells the inner optimizer what stands
    round it: Keras has no hook for that. So `apply` and `scale_loss` of Keras' class are replaced
    by functions that do what they did for every other optimizer: at the first call, that of the
    first wrapper that is made, and not when gradstab is imported.

    Args:
        ours: A class with `apply_scaled(loss_scale_optimizer, gradients, variables)` and
            `note_loss(loss)`.

    Raises:
        AttributeError: If this version of Keras has no such methods.
    """
    of_keras = keras.optimizers.LossScaleOptimizer
    apply, scale_loss = of_keras.apply, of_keras.scale_loss

    @functools.wraps(apply)
    @tf.autograph.experimental.do_not_convert
    def apply_or_hand_over(self: Any, grads: Any, trainable_variables: Any = None) -> None:
        if not isinstance(self.inner_optimizer, ours):
            apply(self, grads, trainable_variables)
            return
        if not self.built:
            self.build(trainable_variables)
            self.built = True
        self.inner_optimizer.apply_scaled(self, grads, trainable_variables)

    @functools.wraps(scale_loss)
    def scale_and_show_loss(self: Any, loss: Any) -> Any:
        if isinstance(self.inner_optimizer, ours):
            self.inner_optimizer.note_loss(loss)
        return scale_loss(self, loss)

    of_keras.apply, of_keras.scale_loss = apply_or_hand_over, scale_and_show_loss
