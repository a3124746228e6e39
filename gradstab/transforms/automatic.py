"""The clip that needs no bound in units of the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, final

from keras import ops

from gradstab._serialization import register
from gradstab._validation import check_float, check_int
from gradstab.functional._backend import value_of
from gradstab.functional.clipping import clip_factor
from gradstab.functional.limits import (
    descent_limit,
    early,
    followed,
    loss_limit,
    outlier_factor,
    outlier_limit,
    rate_limit,
)
from gradstab.functional.running import push
from gradstab.transforms.base import Context, SeedSpec, State, StateSpec, Transform
from gradstab.transforms.bounds import Bound
from gradstab.transforms.exploding import can_shrink, is_exploding, shrinking
from gradstab.transforms.kernels import Kernels
from gradstab.transforms.measured import Measured
from gradstab.transforms.sensitivity import bound_by_weights

_check_bound = partial(check_float, allow_inf=True)
# What an outlier adds to the history, as a share of its maximum: a new level is accepted in some
# steps. The same for the rate, once there were some, so that a spike of it does not shorten all
# steps after.
_GROWTH = 1.25
# A rate that the weights do not limit: Adam's default, of which any net is expected to bear it.
_LEAST_RATE = 1e-3
# Beyond so many times their first norm, or the usual one, weights count as blown up.
_MOST_GROWTH = 8.0
# By how much a step has to exceed what its loss allows before it is clipped to that. Losses and
# norms of batches scatter by less in healthy runs.
_LOSS_TOLERANCE = 2.0
# The same for norms and what the largest loss allows with momentum.
_DESCENT_TOLERANCE = 1.7


@final
@register
class AutomaticClipping(Transform):
    """Clips steps that are far too long, by what a step itself tells, and leaves others alone.

    All gradients are scaled by one factor. η is the learning rate of the step and n the global norm
    of its gradient. Three limits stand, of which the tightest acts, and one on the rate:

    - Outliers. The length s = η·n is compared with the longest of the last N steps. Beyond
      c = k·(1 + 8/t)·max s, after t steps, g ← g·(c/s)²: the farther out a step is, the less is
      left of it, so that a batch with wrong inputs, or a spike of the rate, does hardly anything.
      An outlier adds no more than 1.25 times the maximum to the history, and so a new level is
      accepted within some steps. The same holds for the rate, since optimizers such as Adam make
      long steps of it whatever the gradient is: one beyond k·(1 + 8/t)·η*, where η* is the largest
      rate so far, is taken for 1.25·(1 + 8/t)·η*, and a rate that is raised for good gets there
      within some steps.
    - The weights. n ≤ ρ·‖w‖/η*, with ‖w‖ the norm of all weights. It binds where the rate is too
      high for the net, and does not rise as the rate falls, so that the schedule keeps its shape.
      How much of its weights a net may change in a step depends on its sensitivity e = ‖g‖·‖w‖/L: ρ
      = r·√(4/e), kept within 0.4·r and r. Nets are most easily spoilt in the first steps. A first
      gradient that is as long as the limit begins a warm-up, in which ρ grows from 5·(4/e) % of
      itself, kept within 0.3 % and 5 %; the shorter it is, the more of the warm-up is left out, so
      that a healthy net with a usual rate has none. It goes ten times as slow while gradients are
      longer than the limit, and up to ten times as slow where e > 40, as in nets that explode from
      their first step. There it waits, with an optimizer whose steps are no shorter for a shorter
      gradient, for gradients within the bound of the step: what Adam's second moments take in early
      holds it back for long.
    - The loss. η·n·‖g_clipped‖ ≤ L: no step may be so long that its own gradient predicts a loss
      below zero. It acts where that is exceeded by a factor of 2, such as in nets that explode from
      their first step, and only if the loss is known: `fit` and `training.train` tell it, a loop of
      your own does by `optimizer.scale_loss(loss)`. A loss that can be negative tells nothing, and
      only positive values count. With optimizers that take shorter steps for shorter gradients,
      such as SGD, a step counts 1/(1 - β) times in the end if they have momentum β: there
      n ≤ √((1 - β)·L*/η*), with L* the largest loss so far, where n is beyond 1.7 times that. It
      keeps recurrent nets from being thrown off the cliffs of their loss. For one that is not
      Keras', β counts as 0.9.
    - The rate, for optimizers that change each weight by about the rate whatever its gradient, such
      as Adam. If all n weights of a layer with f inputs per unit move in one direction, what the
      layer gives changes by η·√(n·f)/‖w‖ of what it gives. At the first step, with the usual ‖w‖
      where a layer begins with less, the sum of that over all layers is to be at most q: where η*
      is beyond, the rate is multiplied by what would bring η* there, so that the schedule keeps its
      shape. Too high a rate makes weights grow: beyond 8 times their norm at first they count as
      blown up, and q shrinks with the square of what is beyond. A rate of up to 0.001 is left as it
      is.

    A start with kernels that are far too large is saved by no limit. Where the loss of the first
    step is in proportion to the scale of the kernels (the mean over kernels of Σ w·∂L/∂w is 0.7·L
    or more), and they are more than twice as large as He's, gradients are replaced by those that
    shrink each kernel to its usual norm and move nothing else: by 2 % of itself in a step with SGD,
    less with a momentum above 0.9, and by the rate with Adam and its like. All else begins when the
    mean is below 0.5·L, after `shrink_steps` at the latest. It needs the loss (with accumulation
    that of the last micro-batch is taken). Kernels with sparse gradients, such as those of
    `Embedding`, stay as they are, and so do those of Adagrad and others, whose first steps it could
    not foresee.

    All this widens the band of rates that work: for SGD the limits on the gradient do, for Adam,
    whose step hardly depends on the length of the gradient, that on the rate.

    Where the optimizer has no single rate (`MultiOptimizer`), the first limit is one on n, and the
    others do not act. What is not finite is passed on as it came.

    Args:
        max_ratio: r, a positive float; infinite for no such limit. Can be assigned during a run.
            Where the loss is not known, 0.4 times as much acts.
        warmup_steps: Steps of a whole warm-up, an integer of at least 0; many times as many where
            gradients stay long.
        outlier_factor: k, a float, 1 or more to be sensible; infinite for no such limit. Can be
            assigned during a run.
        history_length: N, a positive integer.
        loss_factor: What the loss is multiplied by in the third limit, a positive float; infinite
            for no such limit. Can be assigned during a run.
        max_rate_ratio: q, a positive float; infinite for no such limit. Can be assigned during a
            run.
        shrink_steps: Steps that kernels may take to shrink, an integer of at least 0; 0 leaves them
            as they begin.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If one is out of its range.

    Reference: the bound relative to the weights follows You, Gitman and Ginsburg, 2017, Large batch
    training of convolutional networks, and Brock et al., 2021; the step to a loss of zero is that
    of Polyak, 1969, Minimization of unsmooth functionals. That Adam bears rates in proportion to
    1/f is from Yang et al., 2022, Tensor programs V.

    >>> AutomaticClipping(history_length=64)
    AutomaticClipping(max_ratio=0.06, warmup_steps=100, outlier_factor=2.0, history_length=64, loss_factor=1.0, max_rate_ratio=12.0, shrink_steps=1000)
    """  # noqa: E501  a line of the doctest

    max_ratio = Bound(_check_bound)
    outlier_factor = Bound(_check_bound)
    loss_factor = Bound(_check_bound)
    max_rate_ratio = Bound(_check_bound)

    def __init__(
        self,
        max_ratio: float = 0.06,
        warmup_steps: int = 100,
        outlier_factor: float = 2.0,
        history_length: int = 128,
        loss_factor: float = 1.0,
        max_rate_ratio: float = 12.0,
        shrink_steps: int = 1000,
    ) -> None:
        self.max_ratio = max_ratio
        self.warmup_steps = check_int("warmup_steps", warmup_steps, minimum=0)
        self.outlier_factor = outlier_factor
        self.history_length = check_int("history_length", history_length)
        self.loss_factor = loss_factor
        self.max_rate_ratio = max_rate_ratio
        self.shrink_steps = check_int("shrink_steps", shrink_steps, minimum=0)

    def state_spec(self, variables: Sequence[Any]) -> dict[str, StateSpec | SeedSpec]:
        """Keep the last lengths, the warm-up, largest rate and loss, and the first weights."""
        return {
            "history": StateSpec((self.history_length,)),
            "count": StateSpec(dtype="int64"),
            "progress": StateSpec(),
            "peak_rate": StateSpec(),
            "first_norm": StateSpec(),
            "response": StateSpec(),
            "peak_loss": StateSpec(),
            "shrunk": StateSpec(dtype="int64"),
        }

    def limit_rate(self, state: State, context: Context) -> Any | None:
        """Keep a rate from jumping far beyond all before, and from being too high for Adam."""
        if context.learning_rate is None:
            return None
        rate, share = self._rate_and_share(state, context)
        limited = rate if share is None else rate * share
        return ops.minimum(ops.cast(value_of(context.learning_rate), "float32"), limited)

    def apply(self, values: Measured, state: State, context: Context) -> tuple[Measured, State]:
        """Scale all gradients by one factor, and take in length and rate; or shrink kernels."""
        kernels = self._kernels(context)
        if kernels is None:
            return self._clipped(values, state, context, None)
        shrunk = state["shrunk"]
        asked = ops.logical_and(state["count"] == 0, shrunk < self.shrink_steps)
        exploding = is_exploding(context, kernels, begun=shrunk > 0, asked=asked)
        clipped, new_state = self._clipped(values, state, context, exploding)
        new_state["shrunk"] = shrunk + ops.cast(exploding, "int64")
        return shrinking(clipped, context, kernels, exploding), new_state

    def _kernels(self, context: Context) -> Kernels | None:
        """Return the kernels that may be shrunk, if there are any and it can be told when."""
        if not self.shrink_steps or not can_shrink(context):
            return None
        sparse = [place for place, rows in enumerate(context.rows) if rows is not None]
        return Kernels.of(context).but(sparse) or None

    def _clipped(
        self, values: Measured, state: State, context: Context, exploding: Any | None
    ) -> tuple[Measured, dict[str, Any]]:
        """Scale all gradients by one factor, and take in length and rate.

        All begins after an exploding start: the first step, the warm-up, what is compared with.
        """
        norm, history, count = values.global_norm, state["history"], state["count"]
        rate = None
        if context.learning_rate is not None:
            rate = ops.cast(value_of(context.learning_rate), "float32")
        length = norm if rate is None else rate * norm
        limit = outlier_limit(history, count, self.bound("outlier_factor"))
        factor = outlier_factor(length, limit)
        taken = ops.where(length > limit, _GROWTH * ops.max(history), length)
        counts = ops.logical_and(ops.isfinite(length), length > 0)
        if exploding is not None:
            counts = ops.logical_and(counts, ops.logical_not(exploding))
        new_state: dict[str, Any] = {
            "history": ops.where(counts, push(history, count, taken), history),
            "count": count + ops.cast(counts, "int64"),
        }
        if rate is not None:
            given, rate_share = self._rate_and_share(state, context)
            peak = followed(state["peak_rate"], given, _GROWTH * early(count))
            if exploding is not None:
                peak = ops.where(exploding, state["peak_rate"], peak)
            new_state["peak_rate"] = peak
            first = self._first(state, context) if context.moves_by_rate else {}
            new_state |= {name: ops.where(counts, first[name], state[name]) for name in first}
            peak = ops.maximum(given, state["peak_rate"])
            peak = peak if rate_share is None else peak * rate_share
            bound, progress = bound_by_weights(
                norm,
                context,
                self.bound("max_ratio"),
                peak,
                state["progress"],
                count == 0,
                self.warmup_steps,
            )
            new_state["progress"] = ops.where(counts, progress, state["progress"])
            if context.loss is not None:
                loss, length = ops.cast(context.loss, "float32"), norm * factor
                bound = ops.minimum(bound, self._by_loss(length, norm, rate, loss))
                if not context.is_scale_invariant:
                    top = followed(state["peak_loss"], loss, _GROWTH)
                    told = ops.logical_and(counts, ops.isfinite(loss))
                    new_state["peak_loss"] = ops.where(told, top, state["peak_loss"])
                    bound = ops.minimum(bound, self._by_descent(length, top, peak, context))
            factor = factor * clip_factor(norm * factor, bound)
        return values.scaled(ops.where(ops.isfinite(norm), factor, 1.0)), new_state

    def _rate_and_share(self, state: State, context: Context) -> tuple[Any, Any | None]:
        """Return the rate without a spike, and what share of it the weights bear, if it counts."""
        rate, peak = ops.cast(value_of(context.given_rate), "float32"), state["peak_rate"]
        limit = outlier_limit(peak, state["count"], self.bound("outlier_factor"))
        rate = ops.where(rate > limit, _GROWTH * early(state["count"]) * peak, rate)
        if not context.moves_by_rate:
            return rate, None
        first = self._first(state, context)
        grown = context.weight_norm / (_MOST_GROWTH * first["first_norm"])
        ratio = self.bound("max_rate_ratio") / ops.maximum(ops.square(grown), 1.0)
        limit = rate_limit(ratio, first["response"], _LEAST_RATE)
        peak = ops.maximum(rate, peak)
        return rate, ops.where(peak > limit, limit / peak, 1.0)

    @staticmethod
    def _first(state: State, context: Context) -> State:
        """Return what is kept of the weights at the first step."""
        kernels = Kernels.of(context)
        now = {
            "first_norm": ops.maximum(context.weight_norm, kernels.usual_norm),
            "response": kernels.response(context),
        }
        return {name: ops.where(state["count"] == 0, now[name], state[name]) for name in now}

    def _by_loss(self, norm: Any, incoming: Any, rate: Any, loss: Any) -> Any:
        """Return the bound on a gradient of this norm that its loss sets."""
        limit = loss_limit(loss, incoming, rate)
        limit = self.bound("loss_factor") * limit
        return ops.where(norm > _LOSS_TOLERANCE * limit, limit, float("inf"))

    def _by_descent(self, norm: Any, loss: Any, rate: Any, context: Context) -> Any:
        """Return the bound on a gradient of this norm that the largest loss sets."""
        limit = descent_limit(self.bound("loss_factor") * loss, rate, context.momentum)
        return ops.where(norm > _DESCENT_TOLERANCE * limit, limit, float("inf"))
