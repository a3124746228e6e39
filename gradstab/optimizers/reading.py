"""What a reading of telemetry gives: plain data on the host."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from gradstab.optimizers.samples import Samples


@dataclasses.dataclass(frozen=True)
class Divergence:
    """Why training counts as diverged.

    Attributes:
        variable: Path of the first variable whose gradient was not finite; `None` if all were, and
            the step was skipped for another reason.
        step: Number of the step at which it began, from 1, skipped steps counted.
        skipped: Steps skipped in a row; 0 if the bad gradient was applied.
    """

    variable: str | None
    step: int
    skipped: int

    def __str__(self) -> str:
        what = (
            f"the gradient of `{self.variable}` was not finite"
            if self.variable is not None
            else "a transform refused the gradient"
        )
        if self.skipped:
            return (
                f"{self.skipped} steps in a row were skipped, beginning with step {self.step}, "
                f"where {what}. None of them touched the weights. Look at the data and the loss of "
                "these steps; lower the learning rate or check the initialization if it began "
                "early in training."
            )
        return (
            f"At step {self.step} {what}, and the update was applied, since no `SkipNonFinite` "
            "stands in the chain. The weights hold NaN now. Restore them from a checkpoint, and "
            "wrap the optimizer with `gradstab.stabilize`, which skips such steps."
        )


@dataclasses.dataclass(frozen=True)
class Reading:
    """What happened since a cursor. Arrays have one entry per step, oldest first.

    Attributes:
        cursor: Pass it as `since` next time. The number of steps so far, skipped ones counted.
        missed: Steps since the cursor that are no longer kept.
        steps: Numbers of the steps, from 1.
        grad_norm: Global gradient norm before the transforms.
        grad_norm_after: The same after them.
        loss: Loss of the step, NaN where the trainer did not give it.
        clipped: Whether a transform clipped.
        skipped: Whether the step was skipped.
        cause: Why it was skipped, `None` where it was not.
        bad_variable: Path of the first variable whose gradient was not finite, or `None`.
        norms: Gradient norm of each variable before the transforms, by path, in the last step.
        total_skipped: Steps skipped since the optimizer was made.
        total_clipped: Steps clipped since the optimizer was made.
        skipped_by_cause: `total_skipped` by cause.
        consecutive_skips: Steps skipped in a row, up to now.
        divergence: Why training counts as diverged, or `None`.
        samples: Closer looks at some of the steps, where somebody asked for them, else `None`.
    """

    cursor: int
    missed: int
    steps: np.ndarray[Any, Any]
    grad_norm: np.ndarray[Any, Any]
    grad_norm_after: np.ndarray[Any, Any]
    loss: np.ndarray[Any, Any]
    clipped: np.ndarray[Any, Any]
    skipped: np.ndarray[Any, Any]
    cause: list[str | None]
    bad_variable: list[str | None]
    norms: dict[str, float]
    total_skipped: int
    total_clipped: int
    skipped_by_cause: dict[str, int]
    consecutive_skips: int
    divergence: Divergence | None
    samples: Samples | None = None
