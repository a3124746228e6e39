"""Stops training that has diverged, names the cause and puts the best state back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, final

import keras
import numpy as np

from gradstab._errors import DivergenceError
from gradstab._validation import check_choice
from gradstab.optimizers.find import bind, stabilized_optimizer
from gradstab.optimizers.stabilized import StabilizedOptimizer


@final
class DivergenceGuard(keras.callbacks.Callback):
    """Stops `fit` or `training.train` when training has diverged, and says why.

    With a `StabilizedOptimizer` training has diverged when more than `max_consecutive` steps in a
    row were skipped, or when a gradient that was not finite was applied because nothing in the
    chain skips. With any other optimizer the guard sees the damage only: weights that are not
    finite. Either way it names the first variable at fault, puts back the best state that it saw,
    and stops.

    The best state is that of the epoch with the lowest `monitor` (of a training loss that a skipped
    batch made NaN, the mean over the steps that were applied): the model's weights with the
    optimizer's moments and iterations, copied to the host's memory, three times the model's size
    under Adam. Where no epoch was completed, weights that are still finite stay as they are, and
    others go back to where training began.

    Keras' `BackupAndRestore` deletes its backup when training is stopped in good order, as here
    with `"stop"`; choose `"raise"` beside it.

    Args:
        on_divergence: `"stop"` ends training in good order, `"raise"` raises `DivergenceError`.
        monitor: Name of the quantity in the epoch's logs whose minimum is the best state. By
        default
            `"val_loss"` where there is one, else `"loss"`.
        verbose: Whether `"stop"` prints the verdict.

    Attributes:
        verdict: What was wrong and what was done, in plain words; `None` while all is well.

    Raises:
        ValueError: If `on_divergence` is neither.

    Example:
    ```python
    guard = gradstab.callbacks.DivergenceGuard()
    model.compile(gradstab.stabilize("adam"), loss)
    model.fit(x, y, callbacks=[guard])
    if guard.verdict:
        ...
    ```
    """

    # `training.train` asks: this callback need not be called after every single step.
    needs_every_batch = False

    def __init__(
        self,
        on_divergence: Literal["stop", "raise"] = "stop",
        monitor: str | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__()
        self.on_divergence = check_choice("on_divergence", on_divergence, ("stop", "raise"))
        self.monitor = monitor
        self.verbose = verbose
        self.verdict: str | None = None
        self._best = math.inf
        self._best_epoch: int | None = None
        self._state: list[np.ndarray[Any, Any]] | None = None
        self._batches = 0
        self._cursor = 0

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Keep the state in which training begins."""
        self.verdict = None
        self._best = math.inf
        self._best_epoch = None
        self._batches = 0
        self._state = None
        optimizer = stabilized_optimizer(self.model)
        self._cursor = 0 if optimizer is None else optimizer.telemetry.peek().cursor
        if self.model.built:
            bind(self.model)
            # Moments have to be there to be copied; Keras makes them in the first step only.
            self.model.optimizer.build(self.model.trainable_variables)
            self._state = self._copy()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Look at the telemetry about as often as a run of skips can exceed its budget."""
        optimizer = stabilized_optimizer(self.model)
        if optimizer is None:
            return
        self._batches += 1
        if self._batches >= min(optimizer.max_consecutive or 1, 50):
            self._batches = 0
            self._judge(optimizer)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Judge, and keep the state if it is the best so far."""
        self._judge(stabilized_optimizer(self.model))
        if self.verdict is not None:
            return
        logs = logs or {}
        name = self.monitor or ("val_loss" if "val_loss" in logs else "loss")
        value = float(logs.get(name, math.nan))
        applied = self._loss_of_applied_steps()
        if name == "loss" and math.isnan(value):
            value = applied
        if value < self._best:
            self._best, self._best_epoch = value, epoch
            self._state = self._copy()

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Let go of the copy."""
        self._state = None

    def _judge(self, optimizer: StabilizedOptimizer | None) -> None:
        if self.verdict is not None:
            return
        cause = _cause(optimizer) if optimizer is not None else _damage(self.model)
        if cause is None:
            return
        self.verdict = f"Training has diverged. {cause} {self._restore()}"
        if optimizer is not None:
            optimizer.telemetry.acknowledge()
        if self.on_divergence == "raise":
            raise DivergenceError(self.verdict)
        if self.verbose:
            print(f"\n{self.verdict}", flush=True)
        self.model.stop_training = True

    def _loss_of_applied_steps(self) -> float:
        """Return the mean loss of the steps since the last call that were applied.

        Keras' mean over the epoch is NaN after a single skipped batch.
        """
        optimizer = stabilized_optimizer(self.model)
        if optimizer is None:
            return math.nan
        reading = optimizer.telemetry.peek()
        is_new = reading.steps > self._cursor
        self._cursor = reading.cursor
        losses = reading.loss[is_new & ~reading.skipped & np.isfinite(reading.loss)]
        return float(losses.mean()) if len(losses) else math.nan

    def _restore(self) -> str:
        """Put the best state back, and say so."""
        damaged = _damage(self.model) is not None
        if self._best_epoch is not None and self._state is not None:
            self._put_back(self._state)
            return (
                f"The weights and moments of epoch {self._best_epoch + 1}, the best so far, have "
                "been restored."
            )
        if damaged and self._state is not None:
            self._put_back(self._state)
            return "No epoch was completed: the weights with which training began are back."
        if damaged:
            return "There is no earlier state to restore."
        return "No epoch was completed, and the weights are as they were before these steps."

    def _variables(self) -> list[Any]:
        optimizer = self.model.optimizer
        wrapped = stabilized_optimizer(self.model)
        own = (wrapped.inner_optimizer if wrapped is not None else optimizer).variables
        return [*self.model.variables, *own]

    def _copy(self) -> list[np.ndarray[Any, Any]]:
        return [np.array(keras.ops.convert_to_numpy(variable)) for variable in self._variables()]

    def _put_back(self, state: list[np.ndarray[Any, Any]]) -> None:
        for variable, value in zip(self._variables(), state, strict=True):
            variable.assign(value)


def _cause(optimizer: StabilizedOptimizer) -> str | None:
    divergence = optimizer.telemetry.peek().divergence
    return None if divergence is None else str(divergence)


def _damage(model: Any) -> str | None:
    """Name the first weight that is not finite, or return `None`."""
    for variable in model.trainable_variables:
        if not np.isfinite(keras.ops.convert_to_numpy(variable)).all():
            return f"`{variable.path}` holds NaN or infinity."
    return None
