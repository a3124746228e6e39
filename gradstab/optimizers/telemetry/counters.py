"""Step counters in one integer vector, and how an unusual step moves them."""

from __future__ import annotations

from typing import Any

from keras import ops

COUNTS = (
    "skipped",
    "clipped",
    "limited",
    "consecutive_skips",
    "longest_skips",
    "run_variable",
    "run_step",
    "longest_variable",
    "longest_step",
    "applied_nonfinite",
    "applied_variable",
    "applied_step",
)


def counted(counts: Any, step: Any, skip: Any, first: Any, bad: Any, spends: Any) -> Any:
    """Return the counts after a step that was skipped, was not finite, or ends a run of skips.

    Args:
        counts: The counts before: those of `COUNTS`, then one for each cause of skips, then one for
            each rule that limits.
        step: Number of the step. This and what follows are integer scalar tensors.
        skip: 1 if it was skipped, else 0.
        first: Place of the first cause.
        bad: Place of the first variable whose gradient was not finite, or -1.
        spends: 1 if a skip counts towards the budget.
    """
    old = dict(zip(COUNTS, ops.unstack(counts[: len(COUNTS)]), strict=True))
    run = ops.where(spends == 1, (old["consecutive_skips"] + 1) * skip, old["consecutive_skips"])
    begins = ops.logical_and(run == 1, spends == 1)
    run_variable = ops.where(begins, bad, old["run_variable"])
    run_step = ops.where(begins, step, old["run_step"])
    record_run = run > old["longest_skips"]
    applied_bad = ops.logical_and(bad >= 0, skip == 0)
    first_applied = ops.logical_and(applied_bad, old["applied_nonfinite"] == 0)
    new = {
        **old,
        "skipped": old["skipped"] + skip,
        "consecutive_skips": run,
        "longest_skips": ops.maximum(run, old["longest_skips"]),
        "run_variable": run_variable,
        "run_step": run_step,
        "longest_variable": ops.where(record_run, run_variable, old["longest_variable"]),
        "longest_step": ops.where(record_run, run_step, old["longest_step"]),
        "applied_nonfinite": old["applied_nonfinite"] + ops.cast(applied_bad, counts.dtype),
        "applied_variable": ops.where(first_applied, bad, old["applied_variable"]),
        "applied_step": ops.where(first_applied, step, old["applied_step"]),
    }
    head = ops.stack([ops.cast(new[name], counts.dtype) for name in COUNTS])
    places = ops.arange(counts.shape[0] - len(COUNTS), dtype=counts.dtype)
    causes = skip * ops.cast(places == first, counts.dtype)
    return ops.concatenate([head, counts[len(COUNTS) :] + causes])
