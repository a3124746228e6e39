"""AdamW that takes a shorter step where its second moment lags behind the gradient."""

from __future__ import annotations

from typing import Any, final

import keras
from keras import ops

from gradstab._serialization import register
from gradstab._validation import check_float
from gradstab.keras_hooks.optimizer_state import (
    LARGEST_SECOND_MOMENTS,
    SECOND_MOMENTS,
    decays,
    slot,
)
from gradstab.optimizers.compiled.sparse import dense
from gradstab.optimizers.traits import ADAM, TRAITS


@final
@register
class StableAdamW(keras.optimizers.AdamW):
    """AdamW with update clipping: where gradients outgrow the second moment, the rate is reduced.

    At each step and for each variable, η ← η / max(1, RMS) with RMS = √mean(g²/max(v̂, ε²)) over the
    variable's entries, for the gradient g and the bias-corrected second moment v̂ that holds g
    already; then AdamW's step with that rate, weight decay included. When the second moment lags
    behind, after a rare batch or with a large β₂, AdamW divides by too little and its step is far
    too long; RMS measures by how much. In calm times RMS is near 1, above it half of the time, so
    the step is slightly shorter than AdamW's throughout. It replaces clipping of the gradient, and
    needs no bound.

    - The RMS is that of a variable as a whole; absent rows of a sparse gradient count as zeros.
      Sparse gradients are made dense, as in Keras' Adam.
    - Deviation: ε² occurs in the RMS alone; the step itself is Keras' own `m / (√v + ε)`. β₂ is
      0.99 by default, as the paper advises, where Keras' AdamW has 0.999.

    Args:
        learning_rate: η, a float, a schedule or a callable.
        weight_decay: Weight decay: a step subtracts this share of the weights, times the rate.
        beta_1: β₁, decay of the first moment, at least 0 and below 1. beta_2: β₂, decay of the
        second moment, at least 0 and below 1.
        epsilon: ε, a positive float.
        amsgrad: Whether to divide by the largest second moment so far; the RMS then uses it too.
        clipnorm, clipvalue, global_clipnorm: As in Keras.
        use_ema, ema_momentum, ema_overwrite_frequency: As in Keras.
        loss_scale_factor, gradient_accumulation_steps: As in Keras.
        name: Name of the optimizer.

    Raises:
        TypeError: If an argument has another type.
        ValueError: If a number is out of its range.

    Reference: Wortsman et al., 2023, Stable and low-precision training for large-scale
    vision-language models; the clipping of updates is that of Shazeer and Stern, 2018, Adafactor.

    >>> StableAdamW(1e-3, weight_decay=0.1).beta_2
    0.99
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        weight_decay: float = 0.004,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(
            learning_rate=learning_rate,
            weight_decay=check_float("weight_decay", weight_decay, include_minimum=True),
            beta_1=check_float("beta_1", beta_1, include_minimum=True, below=1.0),
            beta_2=check_float("beta_2", beta_2, include_minimum=True, below=1.0),
            epsilon=check_float("epsilon", epsilon),
            amsgrad=amsgrad,
            clipnorm=clipnorm,
            clipvalue=clipvalue,
            global_clipnorm=global_clipnorm,
            use_ema=use_ema,
            ema_momentum=ema_momentum,
            ema_overwrite_frequency=ema_overwrite_frequency,
            loss_scale_factor=loss_scale_factor,
            gradient_accumulation_steps=gradient_accumulation_steps,
            name=name,
        )

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Take AdamW's step for one variable, with the rate that its RMS leaves."""
        gradient = ops.cast(dense(gradient), variable.dtype)
        rms = self._root_mean_square(gradient, variable)
        share = 1.0 / ops.maximum(rms, 1.0)
        rate = ops.cast(learning_rate, "float32")
        if decays(self, variable):
            # Keras has taken off the decay already, with the whole rate: some of it goes back.
            decay = rate * self.weight_decay
            back = decay * (1.0 - share) / (1.0 - decay)
            self.assign_add(variable, variable * ops.cast(back, variable.dtype))
        super().update_step(gradient, variable, rate * share)

    def _root_mean_square(self, gradient: Any, variable: Any) -> Any:
        square = ops.square(ops.cast(gradient, "float32"))
        before = ops.cast(slot(self, SECOND_MOMENTS, variable), "float32")
        step = ops.cast(self.iterations + 1, "float32")
        second = before + (square - before) * (1.0 - self.beta_2)
        if self.amsgrad:
            hat = ops.cast(slot(self, LARGEST_SECOND_MOMENTS, variable), "float32")
            second = ops.maximum(second, hat)
        corrected = second / (1.0 - ops.power(self.beta_2, step))
        return ops.sqrt(ops.mean(square / ops.maximum(corrected, self.epsilon**2)))


TRAITS[StableAdamW] = ADAM
