"""Adagrad, RMSprop and Adam as stabilized optimizers, from the few things that a person knows.

Each recipe warms the rate up, takes it to zero along half a cosine, skips bad steps and clips the
global gradient norm. The rate is `schedules.Adjustable`, so that callbacks can cut it. Keras keeps
ε inside the root for RMSprop and Adagrad (g/√(v + ε)), where torch adds it outside (g/(√v + ε)).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from gradstab._validation import check_float, check_int
from gradstab.optimizers.stabilize import stabilize
from gradstab.schedules.compose import Adjustable
from gradstab.schedules.warmup import LinearWarmup


def adagrad(
    peak_learning_rate: float,
    total_steps: int,
    *,
    warmup_steps: int | None = None,
    clip: float | None = 1.0,
) -> Any:
    """Adagrad with an initial accumulator of 0.1, as in the original implementations.

    w ← w − η·g/√(a + ε), a the sum of squared gradients: the rate of each weight falls with what it
    has already received. For sparse features; its rate only falls, so the cosine comes on top.

    Args:
        peak_learning_rate: Rate at the end of the warm-up, a positive float.
        total_steps: Updates in the whole run, warm-up included.
        warmup_steps: Updates of linear warm-up; 5 % of the run by default.
        clip: Bound on the global gradient norm, or `None`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a number is out of range, or the warm-up does not fit into the run.

    Reference: Duchi, Hazan and Singer, 2011, Adaptive subgradient methods for online learning and
    stochastic optimization.

    >>> adagrad(0.01, total_steps=1000, clip=None)
    <StabilizedOptimizer: SkipNonFinite(max_consecutive=50) -> Adagrad>
    """
    schedule = _schedule(peak_learning_rate, total_steps, warmup_steps, lambda steps: steps // 20)
    inner = keras.optimizers.Adagrad(schedule, initial_accumulator_value=0.1)
    return stabilize(inner, clip=clip)


def rmsprop(
    peak_learning_rate: float,
    total_steps: int,
    *,
    warmup_steps: int | None = None,
    clip: float | None = 1.0,
) -> Any:
    """RMSprop with decay 0.9, momentum 0.9 and ε 1e-3, as published for MobileNet and EfficientNet.

    v ← ρ·v + (1 − ρ)·g², w ← w − η·g/√(v + ε) with momentum. The large ε keeps the step small where
    gradients are tiny.

    Args:
        peak_learning_rate: Rate at the end of the warm-up, a positive float.
        total_steps: Updates in the whole run, warm-up included.
        warmup_steps: Updates of linear warm-up; 5 % of the run by default.
        clip: Bound on the global gradient norm, or `None`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a number is out of range, or the warm-up does not fit into the run.

    Reference: Tieleman and Hinton, 2012, Lecture 6.5: RMSprop; settings of Tan and Le, 2019,
    EfficientNet: rethinking model scaling for convolutional neural networks.

    >>> rmsprop(1e-3, total_steps=1000, clip=None)
    <StabilizedOptimizer: SkipNonFinite(max_consecutive=50) -> RMSprop>
    """
    schedule = _schedule(peak_learning_rate, total_steps, warmup_steps, lambda steps: steps // 20)
    inner = keras.optimizers.RMSprop(schedule, rho=0.9, momentum=0.9, epsilon=1e-3)
    return stabilize(inner, clip=clip)


def adam(
    peak_learning_rate: float,
    total_steps: int,
    *,
    warmup_steps: int | None = None,
    clip: float | None = 1.0,
) -> Any:
    """Adam with the warm-up that its second moment asks for.

    Until v has seen about 2/(1 − β₂) steps, its estimate is too noisy to divide by: 2000 steps of
    linear warm-up at β₂ = 0.999, but at most a tenth of the run.

    Args:
        peak_learning_rate: Rate at the end of the warm-up, a positive float.
        total_steps: Updates in the whole run, warm-up included.
        warmup_steps: Updates of linear warm-up; min(2000, total_steps/10) by default.
        clip: Bound on the global gradient norm, or `None`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a number is out of range, or the warm-up does not fit into the run.

    Reference: Kingma and Ba, 2015, Adam: a method for stochastic optimization; Ma and Yarats, 2021,
    On the adequacy of untuned warmup for adaptive optimization.

    >>> adam(1e-3, total_steps=1000, clip=None)
    <StabilizedOptimizer: SkipNonFinite(max_consecutive=50) -> Adam>
    """
    schedule = _schedule(
        peak_learning_rate, total_steps, warmup_steps, lambda steps: min(2000, steps // 10)
    )
    return stabilize(keras.optimizers.Adam(schedule), clip=clip)


def _schedule(
    peak_learning_rate: float,
    total_steps: int,
    warmup_steps: int | None,
    default_warmup: Callable[[int], int],
) -> Adjustable:
    peak_learning_rate = check_float("peak_learning_rate", peak_learning_rate)
    total_steps = check_int("total_steps", total_steps)
    warmup_steps = (
        default_warmup(total_steps)
        if warmup_steps is None
        else check_int("warmup_steps", warmup_steps, minimum=0)
    )
    if warmup_steps >= total_steps:
        raise ValueError(
            "`total_steps` must be above `warmup_steps`, which it includes. Received: "
            f"total_steps={total_steps}, warmup_steps={warmup_steps}"
        )
    decay = keras.optimizers.schedules.CosineDecay(peak_learning_rate, total_steps - warmup_steps)
    return Adjustable(LinearWarmup(decay, warmup_steps))
