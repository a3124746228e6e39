"""Messages from one callback of a run to the others, independent of their order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

# Name of what happened, in words, the rule that told, and steps of this run.
Listener: TypeAlias = Callable[[str, str, str, int], None]

# Kept on the run's history, which is another in the next run.
_ATTRIBUTE = "gradstab_listeners"


def listen(model: Any, listener: Listener) -> None:
    """Be told from now on, until the run ends."""
    vars(model.history).setdefault(_ATTRIBUTE, []).append(listener)


def tell_listeners(model: Any, name: str, message: str, code: str, step: int) -> None:
    """Tell all who listen in this run."""
    for listener in vars(model.history or object).get(_ATTRIBUTE, ()):
        listener(name, message, code, step)
