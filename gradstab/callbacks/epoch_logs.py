"""Puts scalars into the logs of an epoch before any callback gets them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# Where Keras makes the logs of an epoch.
_LOGS_HOOK = "_get_metrics_result_or_logs"


def feed_epoch_logs(model: Any, scalars: Callable[[], dict[str, float]]) -> None:
    """Have `fit` put scalars into an epoch's logs before any callback gets them.

    A callback can add to the logs for those after it only, and Keras has no public place before the
    first. Its private `_get_metrics_result_or_logs` makes the logs of an epoch and of an
    evaluation; it is replaced on this one model, for this one run: `History` is another in the
    next.

    Args:
        model: The model that `fit` trains.
        scalars: Asked at the end of every epoch, and of every evaluation, whose answer is empty.
    """
    stop_feeding(model)
    original = getattr(model, _LOGS_HOOK, None)
    if original is None:
        return  # Another version of Keras: callbacks after the monitor see the scalars.
    history = model.history

    def with_scalars(logs: Any) -> Any:
        if model.history is not history:
            stop_feeding(model)
            return original(logs)
        added = scalars()
        # What a batch's logs have beside the metrics would make Keras take them for the epoch's.
        return {**original({k: v for k, v in dict(logs).items() if k not in added}), **added}

    vars(model)[_LOGS_HOOK] = with_scalars


def stop_feeding(model: Any) -> None:
    """Leave the logs of an epoch to Keras again."""
    vars(model).pop(_LOGS_HOOK, None)
