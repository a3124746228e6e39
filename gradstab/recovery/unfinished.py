"""The recovery of the run that lasts, kept with its model.

Keras calls no callback where `fit` raises, so that the next run has to take out what the last one
built into the step.
"""

from __future__ import annotations

from typing import Any, Final

_ATTRIBUTE: Final = "_gradstab_recovery"


def note(model: Any, recovery: Any) -> None:
    """Keep the recovery of a run that begins."""
    vars(model)[_ATTRIBUTE] = recovery


def forget(model: Any) -> None:
    """Let go of it: the run has ended."""
    vars(model).pop(_ATTRIBUTE, None)


def end(model: Any, step: int) -> None:
    """End the recovery of an earlier run in which `fit` raised.

    Args:
        model: The model.
        step: Steps of that run.
    """
    recovery = vars(model).get(_ATTRIBUTE)
    if recovery is not None:
        recovery.end(step)
