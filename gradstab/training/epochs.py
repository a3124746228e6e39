"""One epoch of training or of validation, with the host woken as seldom as can be."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any

from gradstab._errors import DivergenceError
from gradstab.diagnosis.origin.bad_steps import BadSteps
from gradstab.optimizers.step.accumulation import window_size
from gradstab.optimizers.watching.compiled import compiled_of
from gradstab.optimizers.watching.find import stabilized_optimizer
from gradstab.optimizers.watching.watched import watched_step
from gradstab.training.applied import SkippedSteps
from gradstab.training.feed import Feed
from gradstab.training.hooks import steps_between_hooks
from gradstab.training.leaving import Amid, Leaving
from gradstab.training.strategy import StepLoop
from gradstab.training.workers import STEPS_PER_CALL, Workers

# Long enough that waking costs nothing, short enough for a progress bar and for Ctrl-C.
_SECONDS_PER_CALL = 1.0
_STEPS_BEFORE_TIMED = 32


class Pace:
    """Decides how many steps run in one call.

    Args:
        steps: A fixed number, or None for about a second's worth.
    """

    def __init__(self, steps: int | None) -> None:
        self._fixed = steps
        self._next = 1  # the first call compiles; what it takes says nothing about a step

    def steps(self) -> int:
        """Return how many steps the next call shall run."""
        return self._fixed or self._next

    def took(self, steps: int, seconds: float) -> None:
        """Learn from a call that ran `steps` in `seconds`."""
        if self._next == 1 and steps == 1:
            self._next = _STEPS_BEFORE_TIMED
        else:
            self._next = min(max(2, int(_SECONDS_PER_CALL * steps / seconds)), 1 << 30)


class EpochRunner:
    """Runs epochs of one model in one form of the loop, calling callbacks in `fit`'s order.

    Args:
        model: A compiled model whose weights exist.
        callbacks: A `keras.callbacks.CallbackList`.
        form: The form of the loop.
        steps_per_call: A fixed number of steps between two looks of the host; None: what the
            callbacks need.
        workers: The processes that run these epochs together.
        bad_steps: Finds what began steps that were not finite.
    """

    def __init__(
        self,
        model: Any,
        callbacks: Any,
        form: str,
        steps_per_call: int | None,
        workers: Workers,
        bad_steps: BadSteps,
    ) -> None:
        self._model = model
        self._workers = workers
        self._bad_steps = bad_steps
        if workers.count > 1:
            steps_per_call = steps_per_call or STEPS_PER_CALL
        self._callbacks = callbacks
        self._amid = Amid(0, {}, SkippedSteps(model))
        self._form = form
        self._paces = {
            which: Pace(steps_per_call or steps_between_hooks(callbacks.callbacks, which))
            for which in ("train", "test")
        }
        # A monitor that `train` itself added leaves the logs as they are.
        self._shows_gradients = any(
            getattr(callback, "adds_to_logs", False) for callback in callbacks.callbacks
        )
        # A DivergenceGuard decides itself what becomes of a run that has diverged.
        self.guarded = any(hasattr(callback, "on_divergence") for callback in callbacks.callbacks)

    def train(self, feed: Feed, epoch: int, leaving: Leaving) -> dict[str, Any]:
        """Run the steps of `epoch` and return its logs.

        Args:
            feed: The batches.
            epoch: Number of the epoch.
            leaving: Puts back what there was of this epoch before the run was resumed, and leaves
                the run after a call if it is asked to.
        """
        model, callbacks, pace = self._model, self._callbacks, self._paces["train"]
        with self._workers.call():
            model.reset_metrics()
        callbacks.on_epoch_begin(epoch)
        amid = leaving.come_back(epoch)
        step, judge, epoch_logs = amid.step, amid.judge, dict(amid.logs)
        loop = loop_of(model, "train_step", self._form)
        loop.metrics_were_reset()
        batches = feed.open(epoch)
        batches.skip(step)
        self._bad_steps.batch_of = self._batches_of(feed, epoch, step)
        for callback in callbacks.callbacks:
            # A DivergenceGuard looks at the model on some examples between epochs.
            if hasattr(callback, "see_examples"):
                callback.see_examples(feed.examples())
            # And on those of steps that failed.
            if hasattr(callback, "see_batches"):
                callback.see_batches(feed.batch)
        while feed.steps is None or step < feed.steps:
            callbacks.on_train_batch_begin(step)
            start = time.perf_counter()
            done, logs = self._call(batches, loop, pace.steps())
            if done == 0:
                break
            pace.took(done, time.perf_counter() - start)
            step, epoch_logs = step + done, logs
            callbacks.on_train_batch_end(step - 1, logs | self._observed())
            if model.stop_training:
                break
            if not self.guarded:
                _raise_if_diverged(model.optimizer, self._bad_steps)
            leaving.if_asked(Amid(step, logs, judge))
            # A DivergenceGuard that cuts a scheduled rate has the step traced anew.
            loop = loop_of(model, "train_step", self._form)
        if step == 0:
            raise ValueError(f"`train_data` must yield batches. Received: none in epoch {epoch}")
        ours = stabilized_optimizer(model.optimizer)
        if ours is not None:
            ours.telemetry.warn_of_limits()
        for callback in callbacks.callbacks:
            # A DivergenceGuard may take back the last steps.
            if hasattr(callback, "settle_epoch"):
                epoch_logs = callback.settle_epoch(epoch_logs)
        if judge.verdict() is not None:
            # Means over no step at all: Keras' would be 0, the best loss that there is.
            epoch_logs = dict.fromkeys(epoch_logs, math.nan)
        self._amid = Amid(step, epoch_logs, judge)
        return dict(epoch_logs)

    def _observed(self) -> dict[str, Any]:
        """Return what a monitor has to tell of the last step."""
        watched = watched_step(self._model)
        return watched.latest() if watched is not None and self._shows_gradients else {}

    def _batches_of(
        self, feed: Feed, epoch: int, done: int
    ) -> Callable[[int], tuple[Any, Any] | None] | None:
        """Return what gives the batch of a step of this epoch by the number that telemetry has.

        Args:
            feed: The data.
            epoch: Number of the epoch.
            done: How many steps of it ran before the run was resumed.
        """
        ours = stabilized_optimizer(self._model.optimizer)
        if ours is None or window_size(ours.inner_optimizer) > 1:
            return None  # Of the micro-batches of a window it is not known which it was.
        begun = ours.telemetry.peek().cursor

        def batch_of(step: int) -> tuple[Any, Any] | None:
            found: tuple[Any, Any] | None = None
            if step > begun:
                found = feed.batch(epoch, done + step - begun - 1)
            return found

        return batch_of

    def evaluate(self, feed: Feed, leaving: Leaving) -> dict[str, Any]:
        """Run the validation data through the model and return its logs, as `evaluate` does.

        A run that is asked to leave meanwhile leaves, and validates when it is resumed.
        """
        model, callbacks, pace = self._model, self._callbacks, self._paces["test"]
        model.stop_evaluating = False
        callbacks.on_test_begin()
        with self._workers.call():
            model.reset_metrics()
        loop = loop_of(model, "test_step", self._form)
        batches = feed.open(0)
        logs: dict[str, Any] = {}
        step = 0
        while feed.steps is None or step < feed.steps:
            callbacks.on_test_batch_begin(step)
            start = time.perf_counter()
            done, new_logs = self._call(batches, loop, pace.steps())
            if done == 0:
                break
            pace.took(done, time.perf_counter() - start)
            step, logs = step + done, new_logs
            callbacks.on_test_batch_end(step - 1, logs)
            leaving.if_asked(self._amid)
            if model.stop_evaluating:
                break
        if step == 0:
            raise ValueError("`validation_data` must yield at least one batch. Received: none")
        callbacks.on_test_end(logs)
        return dict(logs)

    def _call(self, batches: Any, loop: StepLoop, steps: int) -> tuple[int, dict[str, Any]]:
        with self._workers.call():
            done, logs = batches.run(loop, steps)
        return int(done), logs


def loop_of(model: Any, step: str, form: str) -> StepLoop:
    """Return the model's compiled loop, tracing anew wherever `fit` would."""
    compiled = compiled_of(model)
    watched = watched_step(model) if step == "train_step" else None
    key = (step, form, watched)
    loop: StepLoop | None = compiled.loops.get(key)
    if loop is None or loop.optimizer is not model.optimizer:
        around = contextlib.nullcontext if watched is None else watched.attached
        loop = compiled.loops[key] = StepLoop(model, step, form, around)
    return loop


def _raise_if_diverged(optimizer: Any, bad_steps: BadSteps) -> None:
    ours = stabilized_optimizer(optimizer)
    if ours is None:
        return
    try:
        ours.raise_if_diverged()
    except DivergenceError as error:
        bad_steps.see(ours.telemetry.peek())
        raise DivergenceError(f"{error}{bad_steps.told()}") from None
