"""Decays: linear to an end, or with the inverse square root of the step without an end."""

from __future__ import annotations

from typing import Any, final

from keras import ops

from gradstab._serialization import register
from gradstab._validation import check_float, check_int
from gradstab.schedules.rates import Schedule, check_end, whole_step
from gradstab.schedules.shapes import along, progress


@final
@register
class LinearDecay(Schedule):
    r"""Lowers the rate along a straight line to a final value.

    Use it if the length of the run is known: down to zero it is as good as a cosine or better, and
    has no shape to tune. Put a warm-up before it: `LinearWarmup(LinearDecay(...), 500)`.

    With $s$ the step, counted from 0, $T$ = `decay_steps`, $\eta_0$ = `initial_learning_rate` and
    $\eta_1$ = `end_learning_rate`,

    $$\text{rate}(s) = \eta_1 + (\eta_0 - \eta_1) \, \max\left(0, 1 - \frac{s}{T}\right).$$

    From step $T$ on the rate is $\eta_1$. A run of $T$ steps ends with step $T - 1$, one short of
    it.

    Args:
        initial_learning_rate: Rate at step 0, a positive float.
        decay_steps: Steps until the end, a positive integer.
        end_learning_rate: Rate from step `decay_steps` on, between 0 and `initial_learning_rate`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a rate is negative, NaN or infinite, the first is 0 or below the last, or
            `decay_steps` is not positive.

    Example:
        >>> from gradstab.schedules import LinearDecay
        >>> schedule = LinearDecay(0.4, decay_steps=4)
        >>> [round(float(schedule(step)), 4) for step in range(6)]
        [0.4, 0.3, 0.2, 0.1, 0.0, 0.0]

    Reference: Bergsma et al., 2025, Straight to zero: why linearly decaying the learning rate to
    zero works best for LLMs.
    """

    def __init__(
        self, initial_learning_rate: float, decay_steps: int, end_learning_rate: float = 0.0
    ) -> None:
        self.initial_learning_rate = check_float("initial_learning_rate", initial_learning_rate)
        self.decay_steps = check_int("decay_steps", decay_steps)
        self.end_learning_rate = check_end(
            "end_learning_rate",
            end_learning_rate,
            "initial_learning_rate",
            self.initial_learning_rate,
        )

    def __call__(self, step: Any) -> Any:
        """Return the rate at `step`, counted from 0, as a float32 tensor of its shape."""
        shares = progress(whole_step(step), 0, self.decay_steps)
        return along("linear", self.initial_learning_rate, self.end_learning_rate, shares)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this schedule."""
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "decay_steps": self.decay_steps,
            "end_learning_rate": self.end_learning_rate,
        }

    def __repr__(self) -> str:
        return (
            f"LinearDecay({self.initial_learning_rate}, decay_steps={self.decay_steps}, "
            f"end_learning_rate={self.end_learning_rate})"
        )


@final
@register
class InverseSquareRoot(Schedule):
    r"""Warms up linearly, then lowers the rate with the inverse square root of the step.

    Use it if the length of the run is not known, as for a transformer that is trained until it is
    good enough: each doubling of the run divides the rate by √2.

    With $t = s + 1$ for the step $s$, counted from 0, $W$ = `warmup_steps` and $\eta$ =
    `peak_learning_rate`,

    $$\text{rate}(s) = \eta \, \min\left(\frac{t}{W}, \sqrt{\frac{W}{t}}\right).$$

    The $W$-th step, $s = W - 1$, has the peak; both branches give it there.

    Args:
        peak_learning_rate: The highest rate, a positive float.
        warmup_steps: Steps up to and including the peak, a positive integer. It sets the scale of
            the decay as well.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the rate is not positive and finite, or `warmup_steps` not positive.

    Example:
        >>> from gradstab.schedules import InverseSquareRoot
        >>> schedule = InverseSquareRoot(0.4, warmup_steps=4)
        >>> [round(float(schedule(step)), 4) for step in (0, 1, 3, 15, 63)]
        [0.1, 0.2, 0.4, 0.2, 0.1]

    Reference: Vaswani et al., 2017, Attention is all you need; in this form, with the peak instead
    of the width of a model, Ott et al., 2019, fairseq: a fast, extensible toolkit for sequence
    modeling.
    """

    def __init__(self, peak_learning_rate: float, warmup_steps: int) -> None:
        self.peak_learning_rate = check_float("peak_learning_rate", peak_learning_rate)
        self.warmup_steps = check_int("warmup_steps", warmup_steps)

    def __call__(self, step: Any) -> Any:
        """Return the rate at `step`, counted from 0, as a float32 tensor of its shape."""
        return _root(step, self.peak_learning_rate, self.warmup_steps)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this schedule."""
        return {"peak_learning_rate": self.peak_learning_rate, "warmup_steps": self.warmup_steps}

    def __repr__(self) -> str:
        return f"InverseSquareRoot({self.peak_learning_rate}, warmup_steps={self.warmup_steps})"


@final
@register
class Noam(Schedule):
    r"""The transformer's schedule: `InverseSquareRoot` with a peak set by the model's width.

    Use it to train a transformer as published, with Adam at $\beta_2 = 0.98$ and $\epsilon =
    10^{-9}$. `Scale(Noam(...), 2.0)` is the variant with a constant factor.

    With $t = s + 1$ for the step $s$, counted from 0, $d$ = `d_model` and $W$ = `warmup_steps`,

    $$\text{rate}(s) = d^{-1/2} \, \min\left(t^{-1/2}, \; t \, W^{-3/2}\right).$$

    The $W$-th step, $s = W - 1$, has the peak $(d \, W)^{-1/2}$: 6.987712e-4 for 512 and 4000.

    Args:
        d_model: Width of the model, a positive integer.
        warmup_steps: Steps up to and including the peak, a positive integer.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If one is not positive.

    Example:
        >>> from gradstab.schedules import Noam
        >>> f"{float(Noam(512, warmup_steps=4000)(3999)):.4e}"
        '6.9877e-04'

    Reference: Vaswani et al., 2017, Attention is all you need.
    """

    def __init__(self, d_model: int, warmup_steps: int = 4000) -> None:
        self.d_model = check_int("d_model", d_model)
        self.warmup_steps = check_int("warmup_steps", warmup_steps)

    def __call__(self, step: Any) -> Any:
        """Return the rate at `step`, counted from 0, as a float32 tensor of its shape."""
        return _root(step, (self.d_model * self.warmup_steps) ** -0.5, self.warmup_steps)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this schedule."""
        return {"d_model": self.d_model, "warmup_steps": self.warmup_steps}

    def __repr__(self) -> str:
        return f"Noam({self.d_model}, warmup_steps={self.warmup_steps})"


def _root(step: Any, peak: float, warmup_steps: int) -> Any:
    count = whole_step(step) + 1
    rising = ops.cast(ops.minimum(count, warmup_steps), "float32") / float(warmup_steps)
    falling = float(warmup_steps) / ops.cast(ops.maximum(count, warmup_steps), "float32")
    # One of the two factors is 1.
    return peak * rising * ops.sqrt(falling)
