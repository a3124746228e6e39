"""Private state of a compiled model: the optimizer that is saved, the epoch of a backup."""

from __future__ import annotations

from typing import Any


def set_optimizer(model: Any, optimizer: Any) -> None:
    """Put another optimizer into a compiled model, and have it saved with the model.

    `compile` is the public way, but it needs every loss and metric again. Keras writes the
    optimizer of the private `_compile_config` into the file, so that is changed too.

    Raises:
        AttributeError: If this version of Keras keeps its compile arguments elsewhere.
    """
    # With the loss scale that `compile` added, if it did: it adds none to what has one, and a file
    # that holds it loads where no mixed precision is set as well.
    model._compile_config.config["optimizer"] = optimizer
    model.optimizer = optimizer
    model.train_function = None


def epoch_of_backup(model: Any) -> int:
    """Return where to go on, as Keras' `BackupAndRestore` says by a private attribute."""
    return getattr(model, "_initial_epoch", None) or 0
