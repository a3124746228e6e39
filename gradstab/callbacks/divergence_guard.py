"""Rolls a run back after a fault and continues, or stops it and names the cause."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, final

import keras

from gradstab._errors import DivergenceError
from gradstab._replicas import count_workers
from gradstab._validation import check_choice, check_int
from gradstab.callbacks.bad_end import warn_of_bad_end
from gradstab.callbacks.closing import Closing
from gradstab.callbacks.listeners import tell_listeners
from gradstab.keras_hooks.epoch_logs import feed_epoch_logs, stop_feeding
from gradstab.optimizers.model.binding import is_built
from gradstab.optimizers.watching.find import bind, loss_of_no_step, trains_the_whole
from gradstab.recovery import unfinished
from gradstab.recovery.action import Action
from gradstab.recovery.bad_batches import BadBatch, Find
from gradstab.recovery.best import BestState
from gradstab.recovery.causes import Cause
from gradstab.recovery.judge import Judge, value_of_logs
from gradstab.recovery.recovering import Recovery
from gradstab.recovery.termination import Termination, code_that_runs_callbacks


@final
class DivergenceGuard(keras.callbacks.Callback):
    """Lets `fit` or `training.train` continue after a fault, or stops it and names the cause.

    It checks every optimizer of the model for: too many skips in a row; weights, moments or moving
    statistics that are not finite; an exploding loss or gradient norm; dead units, constant outputs
    and forgetting (docs/divergence.md).

    With `"recover"` it restores a calm snapshot from the device, drops the steps since, cuts the
    rate if that may be the cause, and raises it again after 500 calm steps (docs/recovery.md). If
    nothing helps, or with the other two, it names the damage, restores the best state, and stops.
    The best state is that of the epoch with the lowest `monitor`: weights, moments and iterations,
    copied to the host's memory. One that is not finite is never kept.

    SIGTERM, which schedulers send before they kill, ends `fit` after the step with exit code 143.
    Together with `BackupAndRestore`, which deletes its backup when training stops, use `"raise"`.

    Args:
        on_divergence: `"recover"` rolls back and continues; `"stop"` ends training regularly;
            `"raise"` raises `DivergenceError`.
        monitor: Name of the quantity in the epoch's logs whose minimum is the best state. By
            default `"val_loss"` if it exists, else `"loss"`.
        verbose: Whether to print actions, and the verdict if the run is stopped.
        max_rollbacks: Number of rollbacks without 500 calm steps in between.
        snapshot_every_n_steps: Steps between two snapshots, and checks, of `"recover"`.

    Attributes:
        verdict: The reason why training was stopped, and the action; `None` while all is well.
        code: Code of the rule behind the verdict (docs/rules/).
        actions: Actions of `"recover"`, each with its step, rule and message.
        bad_batches: Batches whose steps failed under `"recover"`, with the bad examples.

    Raises:
        ValueError: If an argument is out of range; when training begins, if `"recover"` is used on
            several workers; when the first epoch ends, if its logs lack `monitor`.

    ```python
    guard = gradstab.callbacks.DivergenceGuard("recover")
    model.compile(gradstab.stabilize("adam"), loss)
    model.fit(x, y, callbacks=[guard])
    print(guard.actions)
    ```
    """

    # `training.train` asks: this callback need not be called after every single step, and goes on
    # with what it knew where a run is resumed.
    needs_every_batch = False
    kept_attributes = ("progress",)

    def __init__(
        self,
        on_divergence: Literal["recover", "stop", "raise"] = "stop",
        monitor: str | None = None,
        verbose: bool = True,
        *,
        max_rollbacks: int = 5,
        snapshot_every_n_steps: int = 50,
    ) -> None:
        super().__init__()
        choices = ("recover", "stop", "raise")
        self.on_divergence = check_choice("on_divergence", on_divergence, choices)
        self.monitor = monitor
        self.verbose = verbose
        self.max_rollbacks = check_int("max_rollbacks", max_rollbacks)
        self.snapshot_every_n_steps = check_int("snapshot_every_n_steps", snapshot_every_n_steps)
        if on_divergence == "recover":
            # `training.train` asks how often to call.
            self.every_n_steps = self.snapshot_every_n_steps
        self.verdict: str | None = None
        self.code: str | None = None
        self.actions: list[Action] = []
        self.bad_batches: list[BadBatch] = []
        self._judge: Judge | None = None
        self._best: BestState | None = None
        self._recovery: Recovery | None = None
        self._losses: list[float] = []
        self._steps, self._unseen, self._last_batch, self._epoch = 0, 0, -1, 0
        self._is_open = False
        self._closing: Closing | None = None
        self._termination = Termination()

    @property
    def progress(self) -> str | None:
        """What `"recover"` knows of the run that lasts, for a checkpoint of `training.train`."""
        return None if self._recovery is None else self._recovery.kept(self._steps, self.actions)

    @progress.setter
    def progress(self, kept: str | None) -> None:
        if self._recovery is not None and kept is not None:
            self._steps, self.actions = self._recovery.resume(kept)

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Keep the state in which training begins."""
        unfinished.end(self.model, self._steps)
        self.verdict, self.code, self.actions, self.bad_batches = None, None, [], []
        self._losses, self._steps, self._unseen = [], 0, 0
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
        self._recovery = self._new_recovery(self._judge, self._best)
        if count_workers(self.model.distribute_strategy) == 1:
            self._termination.hold(code_that_runs_callbacks(), self.model)
        feed_epoch_logs(self.model, self._scalars)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Count batches anew."""
        self._last_batch, self._epoch, self._is_open = -1, epoch, True
        if self._judge is not None:
            self._judge.begin_epoch()
        if self._recovery is not None:
            self._recovery.begin_epoch(epoch, self._steps)

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Look at a batch of which a step failed before."""
        if self._recovery is not None:
            self._recovery.bad_batches.before(batch)

    def see_batches(self, find: Find) -> None:
        """Take what shows a batch by epoch and number; `training.train` gives it."""
        if self._recovery is not None:
            self._recovery.bad_batches.find_by(find)

    def see_examples(self, batch: Any) -> None:
        """Take some examples to look at the model with; `training.train` shows them."""
        if self._judge is not None:
            self._judge.see_examples(batch)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Look at the telemetry about as often as a run of skips can exceed its budget."""
        if self._termination.is_asked:
            self._leave(batch)
        judge = self._judge
        if judge is None or self.verdict is not None:
            return
        if judge.wants_first_loss:
            judge.see_first_loss(value_of_logs(logs or {}, "loss"))
        # With several steps in a call, `batch` is the last of them.
        taken = max(1, batch - self._last_batch)
        self._last_batch = batch
        self._steps, self._unseen = self._steps + taken, self._unseen + taken
        if self._recovery is not None:
            if self._unseen >= self.snapshot_every_n_steps:
                self._look()
        elif judge.watched and self._unseen >= judge.steps_between_looks:
            self._unseen = 0
            self._act_on(judge.after_steps())

    def settle_epoch(self, logs: dict[str, Any]) -> dict[str, Any]:
        """Return an epoch's logs without the steps that are taken back; `training.train` asks."""
        taken_back = len(self.actions)
        scalars = self._scalars()
        if len(self.actions) > taken_back:
            logs = dict(self.model.get_metrics_result())
        return {**logs, **scalars}

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Judge, and keep the state if it is the best so far."""
        judge, best, logs = self._judge, self._best, logs or {}
        if judge is None or best is None or self.verdict is not None:
            return
        best.check(logs)
        self._unseen = 0
        for each in judge.watched:
            each.optimizer.telemetry.warn_of_limits()
        self._losses.append(value_of_logs(logs, "loss"))
        cause, taken_back = judge.after_epoch(self._losses[-1]), len(self.actions)
        if cause is not None and self._recovery is not None:
            cause = self._recovery.on_cause(cause, self._steps, epoch)
        self._act_on(cause)
        is_whole = self.verdict is None and not judge.is_lost and len(self.actions) == taken_back
        if is_whole and (self._recovery is None or self._recovery.is_calm):
            best.see(epoch, logs, 1.0 if self._recovery is None else self._recovery.factor)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Look once more, and let go of the copy."""
        stop_feeding(self.model, self._scalars)
        judge, best, recovery = self._judge, self._best, self._recovery
        if judge is None or best is None:
            self._termination.release()
            return
        try:
            if self.verdict is None:
                cause = judge.at_end(self._losses[-1] if self._losses else math.nan)
                if cause is not None and recovery is not None:
                    cause = recovery.on_cause(cause, self._steps, self._epoch, is_last=True)
                self._act_on(cause)
            if self.verdict is None:
                warn_of_bad_end(judge, self._losses, self._steps)
        finally:
            if recovery is not None:
                recovery.end(self._steps)
            judge.bad_steps.leave()
            self._judge = self._best = self._recovery = None
            closing, self._closing = self._closing, None
            if closing is not None:
                closing.leave(self.params)
            self._termination.release()
        best.warn_of_another_log()

    def _new_recovery(self, judge: Judge, best: BestState) -> Recovery | None:
        if self.on_divergence != "recover":
            return None
        budgets = self.max_rollbacks, self.snapshot_every_n_steps
        recovery = Recovery(self.model, judge, best, *budgets, self._note, self._note_bad_batch)
        recovery.begin()
        return recovery

    def _leave(self, batch: int) -> None:
        """Leave `fit` between two steps: what other callbacks write is whole, and stays."""
        told = (
            f"step {batch + 1} of epoch {self._epoch + 1}. Backups and checkpoints stay as they are"
        )
        tell_listeners(self.model, "left", told, "SIGTERM", self._steps)
        self._termination.leave(told)

    def _scalars(self) -> dict[str, float]:
        """Look at the last steps of an epoch before its logs are made; return what these get."""
        if self._is_open and self._recovery is not None and self.verdict is None:
            self._is_open = False
            self._look()
            if self._recovery.dropped_all:
                # Means over no step would be 0, the best loss that there is.
                return dict.fromkeys(self.model.get_metrics_result(), math.nan)
        return loss_of_no_step(self.model)

    def _look(self) -> None:
        if self._recovery is not None:
            self._unseen = 0
            epochs = (self.params or {}).get("epochs")
            is_last = not self._is_open and epochs is not None and self._epoch + 1 >= epochs
            cause = self._recovery.look(self._steps, self._epoch, is_last=is_last)
            self._act_on(cause)

    def _note_bad_batch(self, found: BadBatch) -> None:
        self.bad_batches.append(found)
        self._say("bad_batch", f"{found}.", "nonfinite-data", self._steps)

    def _note(self, action: Action) -> None:
        self.actions.append(action)
        self._say(action.name, action.message, action.kind, action.step)

    def _say(self, name: str, text: str, code: str, step: int) -> None:
        tell_listeners(self.model, name, text, code, step)
        if self.verbose:
            print(f"\nStep {step}: {text}", flush=True)

    def _act_on(self, cause: Cause | None) -> None:
        judge, best = self._judge, self._best
        if cause is None or judge is None or best is None or self.verdict is not None:
            return
        cause = cause.because_of(self.bad_batches)
        self.code = cause.code
        self.verdict = cause.verdict(best.restore(cause))
        for each in judge.watched:
            each.optimizer.telemetry.acknowledge()
        if self.on_divergence == "recover":
            tell_listeners(self.model, "gave_up", self.verdict, cause.code, self._steps)
        if self.on_divergence == "raise":
            raise DivergenceError(self.verdict)
        if self._closing is not None:
            self._closing.diverged = str(cause)
        if self.verbose:
            print(f"\n{self.verdict}", flush=True)
        self.model.stop_training = True
