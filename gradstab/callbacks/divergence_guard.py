"""Stops training that has diverged, names the cause and puts the best state back."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, Literal, final

import keras

from gradstab._errors import DivergenceError
from gradstab._validation import check_choice
from gradstab.callbacks.closing import Closing
from gradstab.keras_hooks.epoch_logs import feed_epoch_logs, stop_feeding
from gradstab.optimizers.model.binding import is_built
from gradstab.optimizers.watching.find import bind, loss_of_no_step, trains_the_whole
from gradstab.recovery.best import BestState
from gradstab.recovery.causes import Cause
from gradstab.recovery.judge import Judge, value_of_logs


@final
class DivergenceGuard(keras.callbacks.Callback):
    """Stops `fit` or `training.train` when training has diverged, and says why.

    It looks at all optimizers that the model holds, gradstab's and others, and finds: too many
    skips in a row, or, when training ends, all steps skipped; weights, moments or moving statistics
    that are not finite; a finite explosion of the loss or the gradient norm, and a cross-entropy
    far below zero; dead units, constant outputs and forgetting; gradients that are always zero.
    docs/divergence.md has the rules. It names what is damaged, puts the best state back, and stops.

    The best state is that of the epoch with the lowest `monitor`: the model's weights with the
    optimizers' moments and iterations, copied to the host's memory, three times the model's size
    under Adam. A state of which anything is not finite is never kept. Where no epoch was completed,
    weights that skipped steps left alone stay as they are; others go back to where training began.

    Keras' `BackupAndRestore` deletes its backup when training is stopped in good order, as here
    with `"stop"`; choose `"raise"` beside it.

    Args:
        on_divergence: `"stop"` ends training in good order, `"raise"` raises `DivergenceError`.
        monitor: Name of the quantity in the epoch's logs whose minimum is the best state. By
            default `"val_loss"` where there is one, else `"loss"`.
        verbose: Whether `"stop"` prints the verdict.

    Attributes:
        verdict: What was wrong and what was done, in plain words; `None` while all is well.

    Raises:
        ValueError: If `on_divergence` is neither; when the first epoch ends, if `monitor` is none
            of its logs.

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
        self._judge: Judge | None = None
        self._best: BestState | None = None
        self._loss = math.nan
        self._unseen, self._last_batch = 0, -1
        self._closing: Closing | None = None

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Keep the state in which training begins."""
        self.verdict, self._loss, self._unseen = None, math.nan, 0
        bind(self.model)
        if self.model.built and trains_the_whole(self.model):
            # Moments have to be there to be copied; Keras makes them in the first step only.
            with self.model.distribute_strategy.scope():
                self.model.optimizer.build(self.model.trainable_variables)
        self._closing = Closing.join(self.model)
        self._judge = Judge(self.model)
        self._best = BestState(self._judge, self.monitor)
        if is_built(self.model):
            self._best.begin()
        feed_epoch_logs(self.model, self._scalars)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Count batches anew."""
        self._last_batch = -1
        if self._judge is not None:
            self._judge.begin_epoch()

    def see_examples(self, batch: Any) -> None:
        """Take some examples to look at the model with; `training.train` shows them."""
        if self._judge is not None:
            self._judge.see_examples(batch)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Look at the telemetry about as often as a run of skips can exceed its budget."""
        judge = self._judge
        if judge is None or self.verdict is not None:
            return
        if judge.wants_first_loss:
            judge.see_first_loss(value_of_logs(logs or {}, "loss"))
        # With several steps in a call, `batch` is the last of them.
        self._unseen += max(1, batch - self._last_batch)
        self._last_batch = batch
        if judge.watched and self._unseen >= judge.steps_between_looks:
            self._unseen = 0
            self._act_on(judge.after_steps())

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Judge, and keep the state if it is the best so far."""
        judge, best, logs = self._judge, self._best, logs or {}
        if judge is None or best is None or self.verdict is not None:
            return
        best.check(logs)
        self._unseen = 0
        for each in judge.watched:
            each.optimizer.telemetry.warn_of_limits()
        self._loss = value_of_logs(logs, "loss")
        self._act_on(judge.after_epoch(self._loss))
        if self.verdict is None and not judge.is_lost:
            best.see(epoch, logs)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Look once more, and let go of the copy."""
        stop_feeding(self.model, self._scalars)
        judge, best = self._judge, self._best
        if judge is None or best is None:
            return
        try:
            if self.verdict is None:
                self._act_on(judge.at_end(self._loss))
        finally:
            self._judge = self._best = None
            closing, self._closing = self._closing, None
            if closing is not None:
                closing.leave(self.params)
        if self.monitor is not None and best.name not in ("", self.monitor):
            warnings.warn(
                f"`monitor` was in no epoch's logs, and the best state was judged by {best.name!r}."
                f" Received: monitor={self.monitor!r}. Pass `validation_data`",
                stacklevel=2,
            )

    def _scalars(self) -> dict[str, float]:
        return loss_of_no_step(self.model)

    def _act_on(self, cause: Cause | None) -> None:
        judge, best = self._judge, self._best
        if cause is None or judge is None or best is None or self.verdict is not None:
            return
        self.verdict = (
            f"Training has diverged. {cause} {best.restore(cause)} "
            f"Rule: {cause.code} (docs/rules/{cause.code}.md)."
        )
        for each in judge.watched:
            each.optimizer.telemetry.acknowledge()
        if self.on_divergence == "raise":
            raise DivergenceError(self.verdict)
        if self._closing is not None:
            self._closing.diverged = str(cause)
        if self.verbose:
            print(f"\n{self.verdict}", flush=True)
        self.model.stop_training = True
