"""Transforms that check a step and may veto it."""

from __future__ import annotations

from typing import Any, ClassVar, final

from keras import ops

from gradstab._serialization import register
from gradstab._validation import check_int
from gradstab.transforms.base import Context, State, Transform
from gradstab.transforms.measured import Measured


@final
@register
class SkipNonFinite(Transform):
    """Skips every step whose gradient holds NaN or infinity, however many come in a row.

    Its place in the list does not matter. It checks the gradients from before all transforms, so
    that a clip can't hide an infinite entry. It also checks the sum of squares after all
    transforms, in float32, so that no second moment can overflow. A skipped step leaves weights,
    moments, iterations, weight decay and averages as they were; a gradient of zeros would not.

    Args:
        max_consecutive: Number of steps in a row that may be skipped. With more, training counts as
            diverged: bad steps are still skipped, `callbacks.DivergenceGuard` stops training,
            `training.train` and `StabilizedOptimizer.raise_if_diverged` raise an error.

    Raises:
        TypeError: If `max_consecutive` is not an integer.
        ValueError: If it is below 1.

    >>> SkipNonFinite()
    SkipNonFinite(max_consecutive=50)
    """

    cause: ClassVar[str] = "nonfinite"

    def __init__(self, max_consecutive: int = 50) -> None:
        self.max_consecutive = check_int("max_consecutive", max_consecutive)

    def apply(self, values: Measured, state: State, context: Context) -> tuple[Measured, State]:
        """Leave the gradients as they are."""
        return values, {}

    def veto(self, state: State, context: Context) -> Any | None:
        """Return true if the incoming gradients or the outgoing sum of squares are not finite."""
        outgoing = context.outgoing if context.outgoing is not None else context.incoming
        # A norm is finite where all entries are. (No comparison: TensorFlow's graph optimizer turns
        # the negation of `<` into `>=`, which is not the same for NaN.)
        fine = ops.isfinite(ops.square(outgoing.global_norm))
        if outgoing is not context.incoming:
            fine = ops.logical_and(fine, ops.isfinite(context.incoming.global_norm))
        return ops.logical_not(fine)
