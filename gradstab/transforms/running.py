"""Clips whose bound follows from the norms of the steps before.

Only steps that were applied feed them: what a step that is skipped would have written is dropped,
and a norm that is not finite is never written, whoever let it pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, final

from keras import ops

from gradstab._serialization import register
from gradstab._validation import check_float, check_int
from gradstab.functional.clipping import clip_factor
from gradstab.functional.running import accumulate, average, percentile, push
from gradstab.transforms.base import Context, SeedSpec, State, StateSpec, Transform
from gradstab.transforms.bounds import Bound
from gradstab.transforms.measured import Measured

_check_bound = partial(check_float, allow_inf=True)
# The smallest deviation that ZClip believes, as a share of the mean.
_LEAST_DEVIATION = 0.01


@final
@register
class PercentileClipping(Transform):
    """Clips the global norm to a percentile of the norms so far (AutoClip).

    g ← g·min(1, c/‖g‖) with c the p-th percentile (interpolated linearly) of the norms of the last
    N applied steps and of this one, before clipping. It needs no bound in units of the gradient.
    With a low p it clips most steps by design, and so makes the step nearly the same length
    throughout: at p = 10, nine of ten.

    Deviations: the paper keeps all norms, here the last N count, in a ring of N float32 numbers
    that is saved with the optimizer. Norms of 0 do not count, or a run of them would make the bound
    0 for good. What is not finite does not count, and is passed on as it came. And c can be kept
    from exceeding `max_norm`: the first step is the only one that its own norm is compared with,
    and the paper never clips it.

    Args:
        percentile: p, a float between 0 and 100. Can be assigned during a run.
        history_length: N, a positive integer.
        max_norm: Upper bound on c, a positive float; infinite for none. Can be assigned during a
            run.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If one is out of its range.

    Reference: Seetharaman, Wichern, Pardo and Le Roux, 2020, AutoClip: Adaptive gradient clipping
    for source separation networks.

    >>> PercentileClipping(percentile=10)
    PercentileClipping(percentile=10.0, history_length=1000, max_norm=inf)
    """

    percentile = Bound(partial(check_float, maximum=100.0, include_minimum=True))

    max_norm = Bound(_check_bound)

    def __init__(
        self, percentile: float = 10.0, history_length: int = 1000, max_norm: float = math.inf
    ) -> None:
        self.percentile = percentile
        self.history_length = check_int("history_length", history_length)
        self.max_norm = max_norm

    def state_spec(self, variables: Sequence[Any]) -> dict[str, StateSpec | SeedSpec]:
        """Keep the last norms, and how many there were."""
        return {"history": StateSpec((self.history_length,)), "count": StateSpec(dtype="int64")}

    def apply(self, values: Measured, state: State, context: Context) -> tuple[Measured, State]:
        """Scale all gradients by one factor, and take in the norm."""
        norm = values.global_norm
        counts = ops.logical_and(ops.isfinite(norm), norm > 0)
        history = ops.where(counts, push(state["history"], state["count"], norm), state["history"])
        count = state["count"] + ops.cast(counts, "int64")
        bound = percentile(history, ops.maximum(count, 1), self.bound("percentile"))
        bound = ops.minimum(bound, self.bound("max_norm"))
        factor = ops.where(counts, clip_factor(norm, bound), 1.0)
        return values.scaled(factor), {"history": history, "count": count}


@final
@register
class ZScoreClipping(Transform):
    """Clips the global norm where it stands out from its own recent past (ZClip).

    z = (n − μ)/(σ + ε) for the norm n of the step and the moving mean μ and deviation σ of the
    steps before. Where z > z_t, g ← g·c/n with c = μ + z_t·σ/(z/z_t): the further out a norm is,
    the nearer to the mean it is clipped. Then μ ← α·μ + (1 − α)·n and σ² ← α·σ² + (1 − α)·(n − μ)²
    with the clipped norm in place of n. The first steps are not clipped; mean and variance of their
    norms are what the moving ones begin with.

    It leaves ordinary steps alone and takes spikes out. It can't tell an exploding start, which
    falls into its warm-up: give it a generous `max_norm` for that. When norms rise to a new level
    for good, it clips to the old one for long, since it is fed clipped norms; training goes on
    meanwhile.

    Deviations: a deviation below 1 % of the mean counts as that. Where norms hardly vary, the paper
    would clip each step that is a hair above the mean, and be fed with the mean for ever. And no
    norm exceeds `max_norm`, in the warm-up neither.

    Args:
        z_threshold: z_t, in standard deviations; a positive float, may be infinite. Can be assigned
            during a run.
        decay: α, a float of at least 0 and below 1.
        warmup_steps: Number of steps that are not clipped, a positive integer.
        epsilon: ε, in units of the norm; a positive float.
        max_norm: Bound on the global norm at any time, a positive float; infinite for none. Can be
            assigned during a run.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If one is out of its range.

    Reference: Kumar et al., 2025, ZClip: Adaptive spike mitigation for LLM pre-training.

    >>> ZScoreClipping()
    ZScoreClipping(z_threshold=2.5, decay=0.97, warmup_steps=25, epsilon=1e-06, max_norm=inf)
    """

    z_threshold = Bound(_check_bound)
    max_norm = Bound(_check_bound)

    def __init__(
        self,
        z_threshold: float = 2.5,
        decay: float = 0.97,
        warmup_steps: int = 25,
        epsilon: float = 1e-6,
        max_norm: float = math.inf,
    ) -> None:
        self.z_threshold = z_threshold
        self.decay = _check_decay("decay", decay)
        self.warmup_steps = check_int("warmup_steps", warmup_steps)
        self.epsilon = check_float("epsilon", epsilon)
        self.max_norm = max_norm

    def state_spec(self, variables: Sequence[Any]) -> dict[str, StateSpec | SeedSpec]:
        """Keep mean and variance, and how many norms went in."""
        return {"mean": StateSpec(), "variance": StateSpec(), "count": StateSpec(dtype="int64")}

    def apply(self, values: Measured, state: State, context: Context) -> tuple[Measured, State]:
        """Scale all gradients by one factor, and take in the clipped norm."""
        norm, threshold = values.global_norm, self.bound("z_threshold")
        mean, variance, count = state["mean"], state["variance"], state["count"]
        warms_up = count < self.warmup_steps
        deviation = ops.maximum(ops.sqrt(variance), _LEAST_DEVIATION * mean)
        z = (norm - mean) / (deviation + self.epsilon)
        stands_out = ops.logical_and(ops.logical_not(warms_up), z > threshold)
        limit = mean + threshold * deviation / (ops.where(stands_out, z, 1.0) / threshold)
        limit = ops.minimum(ops.where(stands_out, limit, math.inf), self.bound("max_norm"))
        factor = clip_factor(norm, limit)
        fed = norm * factor
        first = accumulate(mean, variance, count, fed)
        later = average(mean, variance, fed, self.decay)
        new_mean = ops.where(warms_up, first[0], later[0])
        new_variance = ops.where(warms_up, first[1], later[1])
        # A finite norm may be too long to be squared.
        counts = ops.logical_and(ops.isfinite(norm), ops.isfinite(new_variance))
        return values.scaled(factor), {
            "mean": ops.where(counts, new_mean, mean),
            "variance": ops.where(counts, new_variance, variance),
            "count": count + ops.cast(counts, "int64"),
        }


@final
@register
class AdaGradientClipping(Transform):
    """Clips each variable's gradient to a multiple of its own recent norm (AdaGC).

    g ← g·min(1, λ·γ/‖g‖) for the gradient g of each variable and the moving average γ of its
    clipped norms, then γ ← β·γ + (1 − β)·‖g‖ with the clipped g. During the first steps all
    gradients are clipped together to the global norm `max_norm`, and γ is the smallest norm that a
    variable had after that.

    Spikes in one layer are taken out without shortening the others. γ can grow by (1 − β)(λ − 1) a
    step at most, 0.1 % by default: where gradients grow for good, it clips for long.

    Deviations: a norm that is 0 or not finite does not count, or a variable without a gradient in
    one step of the warm-up would never move again. A variable without any norm yet is not clipped,
    and begins with the first that it has.

    Args:
        relative_threshold: λ, a float; at least 1 is sensible. Positive, may be infinite. Can be
            assigned during a run.
        decay: β, a float of at least 0 and below 1.
        warmup_steps: Number of steps that are clipped by the global norm, an integer of at least 0.
        max_norm: Bound on the global norm in these steps; a positive float, may be infinite. Can be
            assigned during a run.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If one is out of its range.

    Reference: Wang et al., 2025, AdaGC: Improving training stability for large language model
    pretraining (arXiv 2502.11034).

    >>> AdaGradientClipping()
    AdaGradientClipping(relative_threshold=1.05, decay=0.98, warmup_steps=100, max_norm=1.0)
    """

    relative_threshold = Bound(_check_bound)
    max_norm = Bound(_check_bound)

    def __init__(
        self,
        relative_threshold: float = 1.05,
        decay: float = 0.98,
        warmup_steps: int = 100,
        max_norm: float = 1.0,
    ) -> None:
        self.relative_threshold = relative_threshold
        self.decay = _check_decay("decay", decay)
        self.warmup_steps = check_int("warmup_steps", warmup_steps, minimum=0)
        self.max_norm = max_norm

    def state_spec(self, variables: Sequence[Any]) -> dict[str, StateSpec | SeedSpec]:
        """Keep one average per variable, and how many steps went in."""
        return {
            "averages": StateSpec((len(variables),), initial=float("inf")),
            "count": StateSpec(dtype="int64"),
        }

    def apply(self, values: Measured, state: State, context: Context) -> tuple[Measured, State]:
        """Scale each gradient to its bound, and take in the clipped norms."""
        norms, averages, count = values.norms, state["averages"], state["count"]
        warms_up = count < self.warmup_steps
        together = clip_factor(values.global_norm, self.bound("max_norm"))
        alone = clip_factor(norms, self.bound("relative_threshold") * averages)
        factors = ops.where(warms_up, together, alone)
        clipped = norms * factors
        moved = self.decay * averages + (1.0 - self.decay) * clipped
        new = ops.where(
            warms_up,
            ops.minimum(averages, clipped),
            ops.where(ops.isfinite(averages), moved, clipped),
        )
        counts = ops.logical_and(ops.isfinite(clipped), clipped > 0)
        is_finite = ops.isfinite(values.global_norm)
        counts = ops.logical_and(counts, is_finite)
        return values.scaled(factors), {
            "averages": ops.where(counts, new, averages),
            "count": count + ops.cast(is_finite, "int64"),
        }


def _check_decay(name: str, value: Any) -> float:
    return check_float(name, value, include_minimum=True, below=1.0)
