"""How often callbacks need the host to be woken."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras

_HOOKS = {
    "train": ("on_train_batch_begin", "on_train_batch_end", "on_batch_begin", "on_batch_end"),
    "test": ("on_test_batch_begin", "on_test_batch_end"),
}


def steps_between_hooks(callbacks: Iterable[Any], which: str) -> int | None:
    """Return after how many steps a callback wants its batch hooks called; None: no matter when.

    A callback that overrides a batch hook, in its class or as an attribute of its own, gets every
    step, unless it says `needs_every_batch = False`: then every `every_n_steps`-th, if it has that
    attribute, or whatever comes. The progress bar, and Keras' callbacks with `save_freq="epoch"`,
    override the hooks without need of every step.

    Args:
        callbacks: The callbacks of a run.
        which: `"train"` or `"test"`.
    """
    wanted = [
        _steps(callback)
        for callback in callbacks
        if any(_overrides(callback, hook) for hook in _HOOKS[which]) and not _indifferent(callback)
    ]
    return min(wanted, default=None)


def _steps(callback: Any) -> int:
    sparing = getattr(callback, "needs_every_batch", True) is False
    return int(callback.every_n_steps) if sparing else 1


def _overrides(callback: Any, hook: str) -> bool:
    default = getattr(keras.callbacks.Callback, hook)
    return hook in vars(callback) or getattr(type(callback), hook, default) is not default


def _indifferent(callback: Any) -> bool:
    kinds = (keras.callbacks.ProgbarLogger, keras.callbacks.History)
    if isinstance(callback, kinds) or getattr(callback, "save_freq", None) == "epoch":
        return True
    needs_every = getattr(callback, "needs_every_batch", True)
    return needs_every is False and not hasattr(callback, "every_n_steps")
