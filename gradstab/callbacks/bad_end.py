"""Warns of a run that no check stopped, and that learned nothing or lost it again."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Final

from gradstab.recovery.judge import Judge
from gradstab.reports.verdict import LOST_AGAIN, NO_PROGRESS, course_of

# A run of fewer steps or epochs is a trial, which nobody expects to learn.
_FEW_STEPS: Final = 20
_FEW_EPOCHS: Final = 2


def warn_of_bad_end(judge: Judge, losses: Sequence[float], steps: int) -> None:
    """Warn once, when training ends.

    Args:
        judge: What judged the run, after its last look.
        losses: The loss of each epoch, oldest first.
        steps: Steps of the run.
    """
    if len(losses) < _FEW_EPOCHS or steps < _FEW_STEPS:
        return
    kind, words = course_of(losses) or ("", "")
    told = None
    if kind == LOST_AGAIN:
        told = f"The model lost what it had learned: {words}."
    elif kind == NO_PROGRESS:
        told = judge.no_better_than_constant(losses[-1])
    if told is not None:
        more = "`gradstab.diagnose(model, x, y)` looks for the cause."
        warnings.warn(f"{told} It was trained for {steps:,} steps. {more}", stacklevel=3)
