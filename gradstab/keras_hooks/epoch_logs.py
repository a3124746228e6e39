"""Puts scalars into the logs of an epoch before any callback gets them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

# Where Keras makes the logs of an epoch.
_LOGS_HOOK = "_get_metrics_result_or_logs"

Scalars: TypeAlias = Callable[[], dict[str, float]]


def feed_epoch_logs(model: Any, scalars: Scalars) -> None:
    """Have `fit` put scalars into an epoch's logs before any callback gets them.

    A callback can add to the logs for those after it only, and Keras has no public place before the
    first. Its private `_get_metrics_result_or_logs` makes the logs of an epoch and of an
    evaluation; it is replaced on this one model, for this one run: `History` is another in the
    next. Several callbacks may feed the same run.

    Args:
        model: The model that `fit` trains.
        scalars: Asked at the end of every epoch, and of every evaluation, whose answer is empty.
    """
    hook = vars(model).get(_LOGS_HOOK)
    if isinstance(hook, _Hook) and hook.history is model.history:
        hook.feeds.append(scalars)
        return
    vars(model).pop(_LOGS_HOOK, None) if isinstance(hook, _Hook) else None
    original = getattr(model, _LOGS_HOOK, None)
    if original is None:
        return  # Another version of Keras: callbacks after this one see the scalars.
    vars(model)[_LOGS_HOOK] = _Hook(model, original, scalars)


def stop_feeding(model: Any, scalars: Scalars) -> None:
    """Leave the logs of an epoch to Keras again, once nobody feeds them any more."""
    hook = None if model is None else vars(model).get(_LOGS_HOOK)
    if isinstance(hook, _Hook):
        hook.feeds = [each for each in hook.feeds if each != scalars]
        if not hook.feeds:
            vars(model).pop(_LOGS_HOOK)


class _Hook:
    """What stands in for Keras' method while a run lasts."""

    def __init__(self, model: Any, original: Callable[[Any], Any], scalars: Scalars) -> None:
        self._model = model
        self._original = original
        self.history = model.history
        self.feeds = [scalars]

    def __call__(self, logs: Any) -> Any:
        if self._model.history is not self.history:  # The last run ended by an exception.
            vars(self._model).pop(_LOGS_HOOK, None)
            return self._original(logs)
        added: dict[str, float] = {}
        for scalars in self.feeds:
            added |= scalars()
        # What a batch's logs have beside the metrics would make Keras take them for the epoch's.
        metrics = self._model.get_metrics_result() if added else {}
        own = {
            key: value for key, value in dict(logs).items() if key not in added or key in metrics
        }
        return {**self._original(own), **added}
