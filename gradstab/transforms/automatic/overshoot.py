"""Steps of SGD that keep overshooting are shortened for as long as they do."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, final

from keras import ops

from gradstab._serialization import register
from gradstab._validation import check_float
from gradstab._variables import value_of
from gradstab.functional.limits import evidence, predicted_fall
from gradstab.transforms.base import Context, SeedSpec, State, StateSpec, Transform
from gradstab.transforms.bounds import Bound
from gradstab.transforms.measured import Measured


@final
@register
class LimitOvershoot(Transform):
    """Shortens steps of SGD while they keep overshooting.

    To first order, and in the end, a step is predicted to lower the loss by η·n²/(1 - β), with n
    the global norm of its gradient, η its rate and β its momentum: x = η·n²/((1 - β)·L) times over.
    On a quadratic loss with a minimum of at least 0, SGD without momentum diverges where x > 4
    lasts. Evidence adds up ln(x/10), between 0 and 5, and falls by 0.3 at most in a step; none
    begins once the mean loss of late is below a fifth of the first loss. Where it exceeds 1, as
    after one step with x > 28 or several beyond 10, a step with x > k is shortened to x = k. So the
    limit lifts once some steps are calm.

    L is the loss of the step, or 0.3 of the largest of late: a batch that is all but solved is no
    evidence. The rule acts with `keras.optimizers.SGD` alone, whose steps shorten with the
    gradient, and where the loss is known and positive: `fit` and `training.train` tell it, a loop
    of your own does by `optimizer.scale_loss(loss)`.

    Args:
        factor: k, a positive float; infinite for no such limit. Can be assigned during a run.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is zero, negative or NaN.

    Reference: the step to a loss of zero is that of Polyak, 1969, Minimization of unsmooth
    functionals; the sum that tells a change is that of Page, 1954, Continuous inspection schemes.

    >>> LimitOvershoot()
    LimitOvershoot(factor=3.0)
    """

    limits: ClassVar[str] = "overshoot"
    factor = Bound(partial(check_float, allow_inf=True))

    # x beyond which a step is evidence, and the sum from which on the rule acts.
    _LEVEL: ClassVar[float] = 10.0
    _ACTS: ClassVar[float] = 1.0
    # What a step takes from the sum at most, and the largest sum.
    _LEAST: ClassVar[float] = -0.3
    _MOST: ClassVar[float] = 5.0
    # Share of the first loss below which the mean loss has fallen: steps long against a small loss
    # are usual then.
    _FALLEN: ClassVar[float] = 0.2
    # Share of the largest loss of late that counts as the loss of a step.
    _SHARE: ClassVar[float] = 0.3
    # What mean and largest loss keep in a step.
    _MEMORY: ClassVar[float] = 0.9

    def __init__(self, factor: float = 3.0) -> None:
        self.factor = factor

    def state_spec(self, variables: Sequence[Any]) -> dict[str, StateSpec | SeedSpec]:
        """Keep the evidence, the first loss, and the mean and the largest of late."""
        names = ("evidence", "first_loss", "mean_loss", "largest_loss")
        return {**{name: StateSpec() for name in names}, "begun": StateSpec(dtype="bool")}

    def apply(self, values: Measured, state: State, context: Context) -> tuple[Measured, State]:
        """Scale all gradients by one factor while there is evidence, and take in this step."""
        if context.loss is None or context.momentum is None or context.learning_rate is None:
            return values, {}
        loss, bound = ops.cast(context.loss, "float32"), self.bound("factor")
        # The loss of a batch whose step another rule shortened is that of a bad batch.
        in_line = values.global_norm >= context.incoming.global_norm
        losses = self._losses(state, loss, ops.logical_and(ops.isfinite(loss), in_line))
        fall = predicted_fall(
            ops.cast(value_of(context.learning_rate), "float32"),
            context.incoming.global_norm * values.global_norm,
            context.momentum,
            ops.maximum(loss, self._SHARE * losses["largest_loss"]),
        )
        has_fallen = losses["mean_loss"] <= self._FALLEN * losses["first_loss"]
        is_calm = ops.logical_and(has_fallen, state["evidence"] == 0)
        ratio = ops.where(is_calm, 0.0, fall / self._LEVEL)
        found = evidence(state["evidence"], ratio, self._LEAST, self._MOST)
        overshoots = ops.logical_and(fall > bound, found > self._ACTS)
        factor = ops.where(overshoots, bound / ops.where(overshoots, fall, 1.0), 1.0)
        return values.scaled(factor), {"evidence": found, **losses}

    def _losses(self, state: State, loss: Any, counts: Any) -> dict[str, Any]:
        """Return what is known of the losses after this one, if it counts."""
        begun, keep = state["begun"], self._MEMORY
        new = {
            "first_loss": ops.where(begun, state["first_loss"], loss),
            "mean_loss": ops.where(begun, keep * state["mean_loss"] + (1 - keep) * loss, loss),
            "largest_loss": ops.where(begun, ops.maximum(keep * state["largest_loss"], loss), loss),
        }
        kept = {name: ops.where(counts, new[name], state[name]) for name in new}
        return {**kept, "begun": ops.logical_or(begun, counts)}
