"""Schedules of a whole run in phases: warm-up, plateau, decay."""

from __future__ import annotations

from typing import Any, Final, final

from keras import ops

from gradstab._serialization import register
from gradstab._validation import check_bool, check_choice, check_float, check_int
from gradstab.schedules.rates import Schedule, check_end, whole_step
from gradstab.schedules.shapes import SHAPES, along, progress, ramp

_CYCLE_SHAPES: Final = ("cosine", "linear")


@final
@register
class WarmupStableDecay(Schedule):
    r"""Warms up, stays constant, and decays at the end, so that a run can be prolonged.

    Use it if the length of the run may change. Training can continue from weights of the constant
    phase, and a decay over the last tenth or fifth is as good as a cosine over the whole run.

    With $s$ the step from 0, $W$, $S$, $D$ the steps of the phases, $\eta_0$, $\eta$, $\eta_1$ the
    first, peak and last rate, and $x = \max(0, 1 - (s - W - S)/D)$ the share of decay left,

    $$\text{rate}(s) = \begin{cases}
    \eta_0 + (\eta - \eta_0) \, \dfrac{s + 1}{W + 1} & s < W \\
    \eta & W \le s \le W + S \\
    \eta_1 + (\eta - \eta_1) \, h(x) & s > W + S
    \end{cases}$$

    where $h(x)$ is $x$ for `"linear"`, $\sin^2(\pi x / 2)$ for `"cosine"` and
    $1 - \sqrt{1 - x}$ for `"1-sqrt"`, which falls fast at first. Afterwards it stays at $\eta_1$.

    Args:
        peak_learning_rate: The highest rate, a positive float.
        warmup_steps: Steps below the peak, 0 for none.
        stable_steps: Steps at the peak, 0 for none.
        decay_steps: Steps from the peak to the end, a positive integer.
        initial_learning_rate: Rate one step before the first, from 0 to the peak.
        end_learning_rate: Rate after the decay, from 0 to the peak.
        decay_shape: `"linear"`, `"cosine"` or `"1-sqrt"`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a rate is negative, NaN, infinite or above the peak, the peak is 0, a number
            of steps is negative, or the shape is another.

    Example:
        >>> from gradstab.schedules import WarmupStableDecay
        >>> schedule = WarmupStableDecay(0.4, warmup_steps=1, stable_steps=2, decay_steps=4)
        >>> [round(float(schedule(step)), 4) for step in range(9)]
        [0.2, 0.4, 0.4, 0.4, 0.3, 0.2, 0.1, 0.0, 0.0]

    References:
        - Hu et al., 2024, MiniCPM.
        - Hägele et al., 2024, Scaling laws beyond fixed training durations: `"1-sqrt"`.
    """

    def __init__(
        self,
        peak_learning_rate: float,
        warmup_steps: int,
        stable_steps: int,
        decay_steps: int,
        initial_learning_rate: float = 0.0,
        end_learning_rate: float = 0.0,
        decay_shape: str = "linear",
    ) -> None:
        self.peak_learning_rate = check_float("peak_learning_rate", peak_learning_rate)
        self.warmup_steps = check_int("warmup_steps", warmup_steps, minimum=0)
        self.stable_steps = check_int("stable_steps", stable_steps, minimum=0)
        self.decay_steps = check_int("decay_steps", decay_steps)
        peak = ("peak_learning_rate", self.peak_learning_rate)
        self.initial_learning_rate = check_end(
            "initial_learning_rate", initial_learning_rate, *peak
        )
        self.end_learning_rate = check_end("end_learning_rate", end_learning_rate, *peak)
        self.decay_shape: str = check_choice("decay_shape", decay_shape, SHAPES)

    def __call__(self, step: Any) -> Any:
        """Return the rate at `step`, counted from 0, as a float32 tensor of its shape."""
        step, peak = whole_step(step), self.peak_learning_rate
        rising = ramp(step, self.warmup_steps, self.initial_learning_rate, peak)
        shares = progress(step, self.warmup_steps + self.stable_steps, self.decay_steps)
        falling = along(self.decay_shape, peak, self.end_learning_rate, shares)
        return ops.where(step < self.warmup_steps, rising, falling)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this schedule."""
        return {
            "peak_learning_rate": self.peak_learning_rate,
            "warmup_steps": self.warmup_steps,
            "stable_steps": self.stable_steps,
            "decay_steps": self.decay_steps,
            "initial_learning_rate": self.initial_learning_rate,
            "end_learning_rate": self.end_learning_rate,
            "decay_shape": self.decay_shape,
        }

    def __repr__(self) -> str:
        return (
            f"WarmupStableDecay({self.peak_learning_rate}, warmup_steps={self.warmup_steps}, "
            f"stable_steps={self.stable_steps}, decay_steps={self.decay_steps}, "
            f"initial_learning_rate={self.initial_learning_rate}, "
            f"end_learning_rate={self.end_learning_rate}, decay_shape={self.decay_shape!r})"
        )


@final
@register
class OneCycle(Schedule):
    r"""One cycle up and down, ending far below its start, for short runs at high rates.

    Use it for short runs of fixed length, with a peak near the highest rate that trains. Keep
    momentum constant, or lower it while the rate rises; this schedule sets only the rate.

    With $\eta$ = `peak_learning_rate`, $\eta_0 = \eta / d_0$ for the `initial_divisor` $d_0$,
    $\eta_1 = \eta_0 / d_1$ for the `final_divisor` $d_1$, $T$ = `total_steps` and
    $U = \text{round}(T \cdot \text{warmup\_fraction})$, the rate goes, with two phases,

    $$\eta_0 \to \eta \text{ over } 0 \dots U, \qquad \eta \to \eta_1 \text{ over } U \dots T,$$

    and with three, as published, down as long as up and then to the end,

    $$\eta_0 \to \eta \text{ over } 0 \dots U, \qquad \eta \to \eta_0 \text{ over } U \dots 2U,
    \qquad \eta_0 \to \eta_1 \text{ over } 2U \dots T.$$

    From $a$ to $b$, with the share $x$ of the phase left, the rate is $b + (a - b) \, h(x)$, where
    $h(x)$ is $\sin^2(\pi x / 2)$ for `"cosine"` and $x$ for `"linear"`.

    Args:
        peak_learning_rate: The highest rate, at step $U$, a positive float.
        total_steps: Steps of the whole run, an integer of at least 2.
        warmup_fraction: Share of the run that rises, above 0 and below 1, or below 1/2 with three
            phases.
        initial_divisor: Peak rate over first rate, at least 1.
        final_divisor: First rate over last rate, at least 1.
        shape: `"cosine"` or `"linear"`.
        three_phase: Whether the rate returns to the first one before it falls to the last.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a number is out of its range, the shape another, or a phase without a step.

    Example:
        >>> from gradstab.schedules import OneCycle
        >>> schedule = OneCycle(0.4, total_steps=10, initial_divisor=4, shape="linear")
        >>> [round(float(schedule(step)), 4) for step in (0, 1, 2, 3, 10, 11)]
        [0.1, 0.2, 0.3, 0.4, 0.0, 0.0]

    Reference: Smith and Topin, 2018, Super-convergence.
    """

    def __init__(
        self,
        peak_learning_rate: float,
        total_steps: int,
        warmup_fraction: float = 0.3,
        initial_divisor: float = 25.0,
        final_divisor: float = 1e4,
        shape: str = "cosine",
        three_phase: bool = False,
    ) -> None:
        self.peak_learning_rate = check_float("peak_learning_rate", peak_learning_rate)
        self.total_steps = check_int("total_steps", total_steps, minimum=2)
        self.warmup_fraction = check_float("warmup_fraction", warmup_fraction, maximum=1.0)
        self.initial_divisor = check_float(
            "initial_divisor", initial_divisor, minimum=1.0, include_minimum=True
        )
        self.final_divisor = check_float(
            "final_divisor", final_divisor, minimum=1.0, include_minimum=True
        )
        self.shape: str = check_choice("shape", shape, _CYCLE_SHAPES)
        self.three_phase = check_bool("three_phase", three_phase)
        up = round(self.total_steps * self.warmup_fraction)
        cycle = 2 * up if three_phase else up
        if not 0 < cycle < self.total_steps:
            phases = "three phases" if three_phase else "two phases"
            raise ValueError(
                f"`warmup_fraction` must leave a step for each of {phases}. Received: "
                f"warmup_fraction={warmup_fraction!r}, which of total_steps={total_steps} makes "
                f"{up} steps up"
            )
        first = self.peak_learning_rate / self.initial_divisor
        turns = [self.peak_learning_rate, first] if three_phase else [self.peak_learning_rate]
        ends = [up, cycle] if three_phase else [up]
        rates = [first, *turns, first / self.final_divisor]
        steps = [0, *ends, self.total_steps]
        # (first step, steps, first rate, last rate) of each phase
        self._phases = [
            (steps[i], steps[i + 1] - steps[i], rates[i], rates[i + 1])
            for i in range(len(steps) - 1)
        ]

    def __call__(self, step: Any) -> Any:
        """Return the rate at `step`, counted from 0, as a float32 tensor of its shape."""
        step = whole_step(step)
        rate: Any = None
        for begin, num_steps, first, last in self._phases:
            here = along(self.shape, first, last, progress(step, begin, num_steps))
            rate = here if rate is None else ops.where(step >= begin, here, rate)
        return rate

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this schedule."""
        return {
            "peak_learning_rate": self.peak_learning_rate,
            "total_steps": self.total_steps,
            "warmup_fraction": self.warmup_fraction,
            "initial_divisor": self.initial_divisor,
            "final_divisor": self.final_divisor,
            "shape": self.shape,
            "three_phase": self.three_phase,
        }

    def __repr__(self) -> str:
        return (
            f"OneCycle({self.peak_learning_rate}, total_steps={self.total_steps}, "
            f"warmup_fraction={self.warmup_fraction}, initial_divisor={self.initial_divisor}, "
            f"final_divisor={self.final_divisor}, shape={self.shape!r}, "
            f"three_phase={self.three_phase})"
        )
