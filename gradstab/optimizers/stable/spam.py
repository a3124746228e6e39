"""Adam that clips spikes of single entries, and resets its moments now and then."""

from __future__ import annotations

import math
from typing import Any, final

import keras
from keras import ops

from gradstab._serialization import register
from gradstab._validation import check_float, check_int
from gradstab.keras_hooks.optimizer_state import FIRST_MOMENTS, SECOND_MOMENTS, slot
from gradstab.optimizers.compiled.sparse import dense
from gradstab.optimizers.traits import ADAM, TRAITS


@final
@register
class SPAM(keras.optimizers.Adam):
    """Spike-aware Adam with momentum reset.

    - Where g² > θ·v for the second moment v before the step, g ← sign(g)·√(θ·v): an entry can't
      exceed √θ times (71 by default) its own past size.
    - Every ΔT steps both moments are set to zero, so that traces of spikes in them are forgotten.
    - After each reset the rate rises again along a cosine, over N steps: it is multiplied by
      1 − 0.99·½·(1 + cos(π·k/N)) in the k-th step after it, k = 0 … N − 1.

    For long runs with Adam in which gradients spike now and then, such as language models.

    - Where v is zero nothing is clipped, since there is no past. v is not corrected for its bias,
      so the bound is tight in the first steps and after a reset.
    - Deviations from the paper's code: Adam's bias correction counts the steps since the last
      reset, and the check acts in every step (docs/transforms.md says why).
    - Weight decay always uses the full rate, as in the paper's code.
    - Sparse gradients are made dense, as in Keras' Adam; the paper's sparse momentum is left out.

    Args:
        learning_rate: A float, a schedule or a callable.
        beta_1: Decay of the first moment, at least 0 and below 1.
        beta_2: Decay of the second moment, at least 0 and below 1.
        epsilon: A positive float.
        threshold: θ, a positive float; may be infinite.
        reset_steps: ΔT, a positive integer.
        warmup_steps: N, an integer of at least 0, at most ΔT.
        weight_decay: As in Keras.
        clipnorm, clipvalue, global_clipnorm: As in Keras.
        use_ema, ema_momentum, ema_overwrite_frequency: As in Keras.
        loss_scale_factor, gradient_accumulation_steps: As in Keras. Steps are windows then.
        name: Name of the optimizer.

    Raises:
        TypeError: If an argument has another type.
        ValueError: If a number is out of its range.

    Reference: Huang et al., 2025, SPAM: Spike-aware Adam with momentum reset for stable LLM
    training.

    >>> SPAM(1e-3).threshold
    5000.0
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        threshold: float = 5000.0,
        reset_steps: int = 500,
        warmup_steps: int = 150,
        weight_decay: float | None = None,
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
            beta_1=check_float("beta_1", beta_1, include_minimum=True, below=1.0),
            beta_2=check_float("beta_2", beta_2, include_minimum=True, below=1.0),
            epsilon=check_float("epsilon", epsilon),
            weight_decay=weight_decay,
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
        self.threshold = check_float("threshold", threshold, allow_inf=True)
        self.reset_steps = check_int("reset_steps", reset_steps)
        self.warmup_steps = check_int("warmup_steps", warmup_steps, minimum=0)
        if self.warmup_steps > self.reset_steps:
            raise ValueError(
                "`warmup_steps` must be at most `reset_steps`. Received: "
                f"warmup_steps={warmup_steps} with reset_steps={reset_steps}"
            )

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Cut spikes, reset if it is time, and take Adam's step for one variable."""
        dtype = variable.dtype
        gradient = ops.cast(dense(gradient), "float32")
        since = ops.mod(self.iterations, self.reset_steps)
        resets = since == 0
        first, second = (
            ops.where(resets, 0.0, ops.cast(slot(self, name, variable), "float32"))
            for name in (FIRST_MOMENTS, SECOND_MOMENTS)
        )
        # Without squaring, which half precision and large entries would not survive.
        limit = ops.sqrt(second) * math.sqrt(self.threshold)
        spikes = ops.logical_and(second > 0, ops.abs(gradient) > limit)
        gradient = ops.where(spikes, ops.sign(gradient) * limit, gradient)

        step = ops.cast(since + 1, "float32")
        first = first + (gradient - first) * (1.0 - self.beta_1)
        second = second + (ops.square(gradient) - second) * (1.0 - self.beta_2)
        corrected = ops.sqrt(1.0 - ops.power(self.beta_2, step)) / (
            1.0 - ops.power(self.beta_1, step)
        )
        rate = ops.cast(learning_rate, "float32") * self._warmup(since) * corrected
        self.assign(slot(self, FIRST_MOMENTS, variable), ops.cast(first, dtype))
        self.assign(slot(self, SECOND_MOMENTS, variable), ops.cast(second, dtype))
        change = rate * first / (ops.sqrt(second) + self.epsilon)
        self.assign_sub(variable, ops.cast(change, dtype))

    def _warmup(self, since: Any) -> Any:
        """Return the factor of the rate; 1 before the first reset."""
        if not self.warmup_steps:
            return 1.0
        share = ops.cast(since, "float32") / self.warmup_steps
        factor = 1.0 - 0.99 * 0.5 * (1.0 + ops.cos(math.pi * share))
        rises = ops.logical_and(self.iterations >= self.reset_steps, since < self.warmup_steps)
        return ops.where(rises, factor, 1.0)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal optimizer."""
        config: dict[str, Any] = super().get_config()
        del config["amsgrad"]
        for argument in ("threshold", "reset_steps", "warmup_steps"):
            config[argument] = getattr(self, argument)
        return config


TRAITS[SPAM] = ADAM
