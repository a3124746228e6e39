"""One run of `train`: its epochs, and the files written after each."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any

import keras

from gradstab._errors import DivergenceError
from gradstab.callbacks.gradient_monitor import GradientMonitor
from gradstab.diagnosis.origin.bad_steps import BadSteps
from gradstab.keras_hooks.batches import stop_showing
from gradstab.keras_hooks.compiled_model import epoch_of_backup
from gradstab.optimizers.watching.compiled import compiled_of
from gradstab.optimizers.watching.find import bind
from gradstab.recovery.termination import Termination
from gradstab.training.applied import SkippedSteps
from gradstab.training.array_feed import ArrayFeed
from gradstab.training.checkpoint import RunDirectory
from gradstab.training.epochs import EpochRunner, loop_of
from gradstab.training.feed import Feed
from gradstab.training.identity import device
from gradstab.training.leaving import Leaving
from gradstab.training.leftovers import Progress
from gradstab.training.probe import Choice, choose_form
from gradstab.training.replicas import synchronize
from gradstab.training.settings import Settings
from gradstab.training.workers import Workers

_STEPS_OF_UNKNOWN_EPOCH = 1000


@dataclasses.dataclass(frozen=True)
class Run:
    """A run with all its parts, checked and built.

    Attributes:
        model: The compiled model.
        settings: The arguments of `train`.
        feed: Training data.
        validation: Validation data, or `None`.
        directory: Where the run is kept, or `None`.
        progress: How far it came before.
        config: What describes it.
        old_config: The same of the run that is resumed; empty for a new one.
        workers: Those that train together.
        termination: Tells whether the process is asked to leave.
    """

    model: Any
    settings: Settings
    feed: Feed
    validation: Feed | None
    directory: RunDirectory | None
    progress: Progress
    config: dict[str, Any]
    old_config: dict[str, Any]
    workers: Workers
    termination: Termination

    def train(self, callbacks: Any) -> keras.callbacks.History:
        """Train the epochs that are left, and return the history of all.

        Keras does not tell callbacks of a run that raises: monitors of gradstab's are told. Of
        several workers one may be lost, and then nothing more can be read.
        """
        monitors: list[GradientMonitor] = []
        try:
            return self._train(callbacks, monitors)
        except BaseException as error:
            stop_showing(self.model)
            for monitor in monitors if self.workers.count == 1 else ():
                monitor.stop_after(error)
            raise

    def _train(self, callbacks: Any, monitors: list[GradientMonitor]) -> keras.callbacks.History:
        model, settings, progress = self.model, self.settings, self.progress
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = self._recorded(callbacks)
            callbacks = keras.callbacks.CallbackList(
                callbacks,
                add_history=True,
                add_progbar=settings.verbose != 0,
                verbose=settings.verbose,
                epochs=settings.epochs,
                steps=self.feed.steps,
                model=model,
            )
        history = model.history
        judge, guarded = SkippedSteps(model), True
        bad_steps = BadSteps.join(model)
        history.history.update(progress.history)
        model.stop_training = False
        monitors += [each for each in callbacks.callbacks if isinstance(each, GradientMonitor)]
        for monitor in monitors:
            monitor.resumes_record = bool(self.old_config)
        callbacks.on_train_begin()
        if self.directory is not None:
            self.directory.restore_callbacks(callbacks.callbacks, progress)
        # Weights may have been loaded, into a model that its optimizer knows already: what a
        # skipped step puts back are the statistics of now.
        bind(model)
        history.epoch = list(range(progress.epochs_elsewhere, progress.epochs_done))
        begun = progress.epochs_done or settings.initial_epoch
        first = max(begun, epoch_of_backup(model))
        progress.epochs_elsewhere += first - progress.epochs_done
        logs: dict[str, Any] | None = None
        if first < settings.epochs and not self._stopped_before():
            progress.epochs_done = first
            choice = self._choose(first)
            history.params = (history.params or {}) | {"loop": dataclasses.asdict(choice)}
            self._begin(choice)
            per_call = settings.steps_per_call
            runner = EpochRunner(
                model,
                callbacks,
                choice.form,
                None if per_call == "auto" else int(per_call),
                self.workers,
                bad_steps,
            )
            guarded = runner.guarded
            leaving = Leaving(
                model, self.directory, progress, self.termination, callbacks.callbacks
            )
            for epoch in range(first, settings.epochs):
                logs = self._epoch(runner, epoch, leaving)
                callbacks.on_epoch_end(epoch, logs)
                with self.workers.call():
                    self._keep(epoch, history, callbacks.callbacks)
                if model.stop_training:
                    break
                if epoch + 1 < settings.epochs:
                    leaving.after_epoch(epoch)
        elif settings.verbose != 0:
            print(
                f"Nothing left to train: {progress.epochs_done} epochs are done. Ask for more "
                "epochs"
            )
        if isinstance(model.optimizer, keras.optimizers.Optimizer):
            model.optimizer.finalize_variable_values(model.trainable_weights)
        callbacks.on_train_end(logs=logs)
        bad_steps.leave()
        verdict = None if guarded else judge.verdict()
        if verdict is not None:
            raise DivergenceError(f"Training has diverged: {verdict}.{judge.began(bad_steps)}")
        is_used = self.directory is not None or settings.early_stopping_patience is not None
        if is_used and progress.best_epoch is None and progress.epochs_done:
            self._warn_that_nothing_improved(history.history[settings.monitor])
        return history

    def _recorded(self, callbacks: Any) -> list[Any]:
        """Return callbacks of which one writes the record of a run that has a directory."""
        given = [each for each in keras.tree.flatten(callbacks) if each is not None]
        if self.directory is None:
            return given
        place = self.directory.path.resolve()
        folders = [each.run_dir for each in given if isinstance(each, GradientMonitor)]
        if any(folder is not None and folder.resolve() == place for folder in folders):
            return given
        monitor = GradientMonitor(place)
        # What a monitor samples after a kill is not what it would have sampled: the history of a
        # resumed run is that of the uninterrupted one.
        monitor.adds_to_logs = False
        return [*given, monitor]

    def _warn_that_nothing_improved(self, values: list[float]) -> None:
        found = "NaN" if all(map(math.isnan, values)) else "not finite"
        kept = "" if self.directory is None else " `model.keras` is the model as the run began."
        warnings.warn(
            f"There is no best model: no epoch improved `monitor`: `{self.settings.monitor}` "
            f"was {found} in every epoch.{kept} Look for NaN in the data that it is computed on",
            stacklevel=4,
        )

    def _stopped_before(self) -> bool:
        """Whether the run was ended early, and no more epochs are asked for than then."""
        if not self.progress.stopped:
            return False
        return bool(self.settings.epochs <= self.old_config["arguments"]["epochs"])

    def _begin(self, choice: Choice) -> None:
        if self.settings.verbose != 0:
            print(f"{choice}; device: {device()}")
        if self.directory is not None:
            loop = self.old_config.get("loop", dataclasses.asdict(choice))
            self.directory.begin(self.config | {"loop": loop}, self.model)

    def _epoch(self, runner: EpochRunner, epoch: int, leaving: Leaving) -> dict[str, Any]:
        logs = runner.train(self.feed, epoch, leaving)
        with self.workers.call():
            synchronize(self.model)
        if self.validation is not None:
            found = runner.evaluate(self.validation, leaving)
            logs |= {f"val_{name}": log for name, log in found.items()}
        return logs

    def _keep(self, epoch: int, history: Any, callbacks: Any) -> None:
        """Take in what an epoch gave: the best model, an early stop, the state to resume from."""
        settings, progress = self.settings, self.progress
        if settings.monitor not in history.history:
            raise ValueError(
                f"`monitor` must be one of the logs, {', '.join(sorted(history.history))}. "
                f"Received: monitor={settings.monitor!r}"
            )
        value = float(history.history[settings.monitor][-1])
        if settings.improves(value, progress.best_value):
            progress.best_value, progress.best_epoch, progress.epochs_since_best = value, epoch, 0
            if self.directory is not None:
                self.directory.save_best(self.model)
        else:
            progress.epochs_since_best += 1
        patience = settings.early_stopping_patience
        if patience is not None and progress.epochs_since_best >= patience:
            self.model.stop_training = True
        progress.epochs_done, progress.step = epoch + 1, 0
        progress.seen, progress.logs = [0, 0], {}
        progress.history = history.history
        progress.stopped = bool(self.model.stop_training)
        if self.directory is not None:
            self.directory.save_last(self.model, progress, callbacks)

    def _choose(self, epoch: int) -> Choice:
        """Return the form of the loop: as asked for, as it was, or the fastest of those timed."""
        model, settings, feed = self.model, self.settings, self.feed
        if model.run_eagerly:
            return Choice(
                "graph", "run step by step, since the model was compiled with run_eagerly"
            )
        if model.distribute_strategy.num_replicas_in_sync > 1:
            if settings.form not in (None, "graph"):
                raise ValueError(
                    "`jit_compile` must be False or 'auto' under a strategy with several "
                    "replicas, whose step XLA can't compile. Received: "
                    f"jit_compile={settings.jit_compile!r}"
                )
            return Choice("graph", "the one form under a strategy with several replicas")
        before = self.old_config.get("loop")
        if settings.form is not None:
            if before is not None and before["form"] != settings.form:
                raise ValueError(
                    f"`jit_compile` can't change in a resumed run, whose form of the loop is "
                    f"{before['form']!r}. Received: jit_compile={settings.jit_compile!r}. Pass "
                    "'auto'"
                )
            return Choice(settings.form, "as asked for")
        if before is not None:
            return Choice(before["form"], "as when the run began")
        num_steps = (settings.epochs - epoch) * (feed.steps or _STEPS_OF_UNKNOWN_EPOCH)
        known = compiled_of(model).forms
        key = (repr(feed.signature()), isinstance(feed, ArrayFeed))
        if key in known:
            choice, for_steps = known[key]
            if len(choice.milliseconds_per_step) > 1 or num_steps <= for_steps:
                again: Choice = choice.again()
                return again
        choice = choose_form(
            lambda form: loop_of(model, "train_step", form),
            feed,
            num_steps=num_steps,
            over_arrays=isinstance(feed, ArrayFeed),
        )
        known[key] = choice, num_steps
        return choice
