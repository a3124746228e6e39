"""Skips steps that stand out from the steps before."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, final

from keras import ops

from gradstab._serialization import register
from gradstab._validation import check_bool, check_float, check_int
from gradstab.functional.running import mean_and_deviation, push
from gradstab.transforms.base import Context, SeedSpec, State, StateSpec, Transform
from gradstab.transforms.bounds import Bound
from gradstab.transforms.measured import Measured

# The smallest deviation that is believed, as a share of the mean: a history of equal numbers would
# make an outlier of whatever comes next.
_LEAST_DEVIATION = 0.1


@final
@register
class SkipOutliers(Transform):
    """Skips a step whole if its gradient norm, or its loss, is far above those of the steps before.

    n > μ + k·σ with the mean μ and the standard deviation σ of the last N applied steps, for the
    global norm of the gradient as it came in, and for the loss where the trainer gives it: `fit`
    and `training.train` do, a loop of your own does by calling `optimizer.scale_loss(loss)`. It
    keeps single bad batches out of weights and moments, where a clip only shortens them. Adam,
    whose step hardly depends on the gradient's length, gains more from it than from clipping.

    - The first `warmup_steps` applied steps are not judged. Against an exploding start, use a clip.
    - σ counts as at least 10 % of |μ|, so that a history of nearly equal numbers does not make
      everything an outlier: with k = 6, what is above 1.6 μ at most.
    - A lasting change of level is accepted. After `max_consecutive` skipped steps in a row, for any
      reason, the next finite step is applied however large, and histories and warm-up start anew.
      So it never skips for ever, and it can't stop a run that truly diverges.
    - A norm or loss that is not finite is always an outlier, in the warm-up too.
    - Values of skipped steps never enter the histories, which are 2·N float32 numbers, saved with
      the optimizer.

    Skipped steps count towards the budget of `SkipNonFinite(max_consecutive)`, if that is listed
    too. `telemetry` and `callbacks.DivergenceGuard` report them with the cause `"outlier"`. Under
    accumulation the loss is that of the window's last micro-batch.

    Args:
        num_sigmas: k, a positive float; may be infinite. Can be assigned during a run.
        history_length: N, an integer of at least 2.
        warmup_steps: An integer of at least 2, at most N.
        max_consecutive: An integer of at least 1; keep it below that of `SkipNonFinite`.
        use_loss: Whether to judge the loss as well.

    Raises:
        TypeError: If an argument has another type.
        ValueError: If one is out of its range.

    Reference: the step skipping of OLMo-core (Allen Institute for AI) and levanter (Stanford CRFM),
    which judge both numbers over 128 steps with k = 6.

    >>> SkipOutliers(num_sigmas=6, use_loss=False)
    SkipOutliers(num_sigmas=6.0, history_length=128, warmup_steps=64, max_consecutive=10, use_loss=False)
    """  # noqa: E501  a line of the doctest

    cause: ClassVar[str] = "outlier"
    num_sigmas = Bound(partial(check_float, allow_inf=True))

    def __init__(
        self,
        num_sigmas: float = 6.0,
        history_length: int = 128,
        warmup_steps: int = 64,
        max_consecutive: int = 10,
        use_loss: bool = True,
    ) -> None:
        self.num_sigmas = num_sigmas
        self.history_length = check_int("history_length", history_length, minimum=2)
        self.warmup_steps = check_int("warmup_steps", warmup_steps, minimum=2)
        self.max_consecutive = check_int("max_consecutive", max_consecutive)
        self.use_loss = check_bool("use_loss", use_loss)
        if self.warmup_steps > self.history_length:
            raise ValueError(
                "`warmup_steps` must be at most `history_length`. Received: "
                f"warmup_steps={warmup_steps} with history_length={history_length}"
            )

    def state_spec(self, variables: Sequence[Any]) -> dict[str, StateSpec | SeedSpec]:
        """Keep the last norms and losses, and how many there were of each."""
        history, count = StateSpec((self.history_length,)), StateSpec(dtype="int64")
        spec: dict[str, StateSpec | SeedSpec] = {"norms": history, "num_norms": count}
        return spec | ({"losses": history, "num_losses": count} if self.use_loss else {})

    def apply(self, values: Measured, state: State, context: Context) -> tuple[Measured, State]:
        """Leave the gradients as they are, and add norm and loss to the histories."""
        judged = self._judged(context)
        restarts = ops.logical_and(
            self._any([self._is_outlier(state, *each) for each in judged]),
            ops.logical_not(self._may_skip(context)),
        )
        new_state: dict[str, Any] = {}
        for name, value in judged:
            count = ops.where(restarts, ops.cast(0, "int64"), state[f"num_{name}"])
            counts = ops.isfinite(value)
            pushed = push(state[name], count, value)
            new_state[name] = ops.where(counts, pushed, state[name])
            new_state[f"num_{name}"] = count + ops.cast(counts, "int64")
        return values, new_state

    def veto(self, state: State, context: Context) -> Any | None:
        """Return true if a number is far above its history, or not finite."""
        judged = self._judged(context)
        outlier = self._any([self._is_outlier(state, *each) for each in judged])
        bad = self._any([ops.logical_not(ops.isfinite(value)) for _, value in judged])
        return ops.logical_or(bad, ops.logical_and(outlier, self._may_skip(context)))

    def _judged(self, context: Context) -> list[tuple[str, Any]]:
        """Return the numbers to judge in this step, by the name of their history."""
        judged = [("norms", context.incoming.global_norm)]
        if self.use_loss and context.loss is not None:
            judged.append(("losses", ops.cast(context.loss, "float32")))
        return judged

    def _is_outlier(self, state: State, name: str, value: Any) -> Any:
        mean, deviation = mean_and_deviation(state[name], state[f"num_{name}"])
        deviation = ops.maximum(deviation, _LEAST_DEVIATION * ops.abs(mean))
        above = value > mean + self.bound("num_sigmas") * deviation
        return ops.logical_and(state[f"num_{name}"] >= self.warmup_steps, above)

    def _may_skip(self, context: Context) -> Any:
        return ops.cast(context.consecutive_skips, "int32") < self.max_consecutive

    @staticmethod
    def _any(flags: Sequence[Any]) -> Any:
        return ops.any(ops.stack(list(flags)))
