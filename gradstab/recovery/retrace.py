"""Has a model's step traced anew in the middle of a run, with whoever watches it."""

from __future__ import annotations

from typing import Any

from gradstab.optimizers.watching.watched import watched_step


def trace_anew(model: Any) -> None:
    """Trace the step again, since what was read while tracing has changed."""
    watched = watched_step(model)
    if watched is not None:
        watched.end()
    model.make_train_function(force=True)
    for observer in reversed(() if watched is None else watched.observers):
        observer.install()
