"""Clips whose bound is computed from the norms of earlier steps.

Only applied steps enter the statistics: those of a skipped step are dropped, and a norm that is not
finite is never stored.
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

    g ← g·min(1, c/‖g‖). c is the p-th percentile (interpolated linearly) of the norms, before
    clipping, of the last N applied steps and of this one. It needs no bound in units of the
    gradient. A low p clips most steps by design (p = 10: nine of ten), so that all steps have
    nearly the same length.

    Deviations: the paper keeps all norms; here the last N are kept, in a ring of N float32 numbers
    that is saved with the optimizer. Norms of 0 are left out, since a series of them would make the
    bound 0 for good. Norms that are not finite are left out too, and such gradients pass unchanged.
    `max_norm` bounds c: the paper never clips the first step, which is compared with its own norm
    alone.

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
        """Keep the last norms, and their number."""
        return {"history": StateSpec((self.history_length,)), "count": StateSpec(dtype="int64")}

    def apply(self, values: Measured, state: State, context: Context) -> tuple[Measured, State]:
        """Scale all gradients by one factor, and store the norm."""
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
    """Clips the global norm where it is far above its recent mean (ZClip).

    z = (n − μ)/(σ + ε) for the norm n of the step and the moving mean μ and deviation σ of the
    steps before. Where z > z_t, g ← g·c/n with c = μ + z_t·σ/(z/z_t): the further out a norm is,
    the nearer to the mean it is clipped. Then μ ← α·μ + (1 − α)·n and σ² ← α·σ² + (1 − α)·(n − μ)²
    with the clipped norm in place of n. The first steps are not clipped; mean and variance of their
    norms initialize μ and σ².

    It leaves ordinary steps alone and removes spikes. It does not see an exploding start, which
    falls into its warm-up: set a generous `max_norm` for that. When norms rise for good, it keeps
    clipping to the old level for a long time, since its statistics use clipped norms; training goes
    on meanwhile.

    Deviations: σ is at least 1 % of μ. Where norms hardly vary, the paper would clip each step
    slightly above the mean, and would never learn another level. `max_norm` holds at all times, in
    the warm-up too.

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
        """Keep mean and variance, and the number of norms in them."""
        return {"mean": StateSpec(), "variance": StateSpec(), "count": StateSpec(dtype="int64")}

    def apply(self, values: Measured, state: State, context: Context) -> tuple[Measured, State]:
        """Scale all gradients by one factor, and add the clipped norm to the statistics."""
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
    clipped norms, then γ ← β·γ + (1 − β)·‖g‖ with the clipped g. During the warm-up all gradients
    are clipped together to the global norm `max_norm`, and γ is the smallest norm that the
    variable's gradient then had.

    Spikes in one layer are removed without shortening the others. γ grows by at most (1 − β)(λ − 1)
    per step, 0.1 % by default. So where gradients grow for good, it keeps clipping for a long time.

    Deviations: a norm that is 0 or not finite is left out; otherwise a variable without a gradient
    in one step of the warm-up would never move again. A variable without a norm so far is not
    clipped; its first norm initializes γ.

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
        """Keep one average per variable, and the number of steps in them."""
        return {
            "averages": StateSpec((len(variables),), initial=float("inf")),
            "count": StateSpec(dtype="int64"),
        }

    def apply(self, values: Measured, state: State, context: Context) -> tuple[Measured, State]:
        """Scale each gradient to its bound, and add the clipped norms to the averages."""
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
