"""Record of one step: the counters after it, and its row in the ring of the latest steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from gradstab.functional._backend import choose
from gradstab.functional.finite import any_of, first_false
from gradstab.optimizers.telemetry.counters import COUNTS, counted
from gradstab.transforms.measured import Measured


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How one step went, as tensors of the compiled step.

    Attributes:
        incoming: Gradients as they came.
        outgoing: Gradients after all transforms.
        loss: Loss of the step, a scalar tensor, or `None`.
        vetoes: Boolean scalar tensors, one per cause.
        limited: Boolean scalar tensors, one per rule that may limit steps.
        overflow: Whether a dynamic loss scale was too large, or `None` where there is none.
        at_floor: Whether that scale can't be halved. Until then it is expected to overflow, and
            no such skip counts towards the budget.
    """

    incoming: Measured
    outgoing: Measured
    loss: Any | None
    vetoes: Sequence[Any]
    limited: Sequence[Any]
    overflow: Any | None
    at_floor: Any | None


def recorded(counts: Any, step: Any, outcome: Outcome) -> tuple[Any, Any]:
    """Return the counts after a step, and its row in the ring.

    Args:
        counts: The counts before: those of `COUNTS`, then one for each cause of skips, then one for
            each rule that limits. An integer vector.
        step: Number of the step, an integer scalar tensor of the same dtype.
        outcome: How it went.
    """
    overflow = outcome.overflow
    flags = [False if overflow is None else overflow, *outcome.vetoes]
    skip = any_of([flag for flag in flags if flag is not False])
    applied = ops.logical_not(skip)
    clip = ops.cast(ops.logical_and(outcome.outgoing.clipped, applied), counts.dtype)
    rules = [ops.cast(ops.logical_and(flag, applied), counts.dtype) for flag in outcome.limited]
    # Not finite where a norm is not.
    bad = ops.logical_not(ops.isfinite(outcome.incoming.global_norm))
    in_a_row = counts[COUNTS.index("consecutive_skips")] > 0
    unusual = ops.logical_or(ops.logical_or(skip, bad), in_a_row)

    def count_more() -> Any:
        # Of booleans, for TensorFlow has no kernel for integers on GPUs.
        first = ops.cast(ops.argmax(ops.stack(flags)), counts.dtype)
        bad = ops.cast(first_false(ops.isfinite(outcome.incoming.norms)), counts.dtype)
        skipped = ops.cast(skip, counts.dtype)
        # 1 unless the scale is still being found.
        spends = ops.cast(1, counts.dtype)
        if overflow is not None:
            expected = ops.logical_and(overflow, ops.logical_not(outcome.at_floor))
            spends = 1 - ops.cast(expected, counts.dtype)
        new = counted(counts, step, skipped, first, bad, spends)
        return ops.concatenate([new, ops.stack([(first + 1) * skipped, bad])])

    def count_nothing() -> Any:
        return ops.concatenate([counts, ops.convert_to_tensor([0, -1], counts.dtype)])

    # Most steps are healthy, and then there is nothing to do but what follows.
    new = choose(unusual, count_more, count_nothing)
    codes = [2.0**place * ops.cast(flag, "float32") for place, flag in enumerate(rules)]
    head = [
        outcome.incoming.global_norm,
        outcome.outgoing.global_norm,
        ops.cast(np.nan if outcome.loss is None else outcome.loss, "float32"),
        ops.cast(clip, "float32"),
        sum(codes, ops.zeros((), "float32")),
    ]
    row = ops.concatenate([ops.stack(head), ops.cast(new[-2:], "float32")])
    return new[:-2] + _touched(counts.shape[0], clip, rules), row


def _touched(size: int, clip: Any, rules: Sequence[Any]) -> Any:
    """Return what a step adds to the counts of steps that were clipped or limited."""
    flags = {COUNTS.index("clipped"): clip}
    if rules:
        flags[COUNTS.index("limited")] = ops.max(ops.stack(list(rules)))
    flags |= {size - len(rules) + place: flag for place, flag in enumerate(rules)}
    nothing = ops.zeros((), clip.dtype)
    return ops.stack([flags.get(place, nothing) for place in range(size)])
