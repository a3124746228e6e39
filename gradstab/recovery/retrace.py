"""Has a model's step traced anew in the middle of a run, with whoever watches it."""

from __future__ import annotations

from typing import Any

# By this name the function that takes a step tells what watches it.
_OBSERVER = "gradstab_observer"


def trace_anew(model: Any) -> None:
    """Trace the step again, since what was read while tracing has changed."""
    observer = getattr(model.train_function, _OBSERVER, None)
    if observer is not None:
        observer.uninstall()
    model.make_train_function(force=True)
    if observer is not None:
        observer.install()
