"""Writes gradient norms, clips and skips to logs, run record and TensorBoard."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, final

import keras

from gradstab._replicas import is_chief
from gradstab._validation import check_bool, check_int
from gradstab.callbacks.closing import Closing
from gradstab.callbacks.layer_rates import LayerRates
from gradstab.callbacks.listeners import listen
from gradstab.callbacks.observers import observers_of
from gradstab.callbacks.pace import Pace
from gradstab.callbacks.probe import check_probe
from gradstab.callbacks.sinks import Sink
from gradstab.callbacks.watch import Watch, named, open_sinks
from gradstab.keras_hooks.epoch_logs import feed_epoch_logs, stop_feeding
from gradstab.optimizers.watching.find import (
    bind,
    loss_of_no_step,
    optimizers_of,
    trains_the_whole,
)
from gradstab.optimizers.watching.observer import Observer
from gradstab.recovery.causes import of_zero_gradient
from gradstab.recovery.liveness import Liveness, stopping_layer

# Bins of the histograms for TensorBoard.
_BINS = 30


@final
class GradientMonitor(keras.callbacks.Callback):
    """Adds gradient norms, clips and skips to the logs, and writes a run record or TensorBoard.

    It works on any compiled model. It reads the measurements that a `StabilizedOptimizer` takes
    inside the compiled step; steps of other optimizers are measured in the same way during the run.
    Training and the saved model are unaffected. These keys join the logs of batches (the last step)
    and of epochs, for History, CSVLogger, the progress bar and every other callback:

    - `grad_norm`, `grad_norm_max`: global gradient norm before the transforms; for an epoch, mean
      and maximum of the finite ones.
    - `clipped`: whether the gradient was longer than a bound that you chose, and was shortened to
      it. This shortens SGD's step, but hardly Adam's, which divides by the gradient's scale.
      `limited`: whether a rule of `clip="auto"` acted. `skipped`: whether the step was skipped. For
      an epoch, the number of such steps.
    - `update_ratio`: norm of the update over norm of the weights, in the latest sample; for an
      epoch, the mean.

    `docs/monitoring.md` describes all measurements, files and limits. When training ends, one line
    on the console sums them up.

    Args:
        run_dir: Folder for record and figures, or `None` for neither. `gradstab report` makes a
            page from it.
        tensorboard_dir: Folder for TensorBoard's event files, or `None` for none.
        every_n_steps: Steps between two samples, which hold details of each variable.
        activations: Whether samples include the layers' outputs. The model has to be built.
        effective_rates: Whether record and TensorBoard include the effective learning rates of
            Adagrad, RMSprop or Adam, layer by layer.
        probe: A held-out batch `(x, y)` or `(x, y, sample_weight)`, whose loss before and after a
            sampled step shows whether steps are in the linear regime.

    Raises:
        ImportError: When training begins, if TensorBoard is needed and missing.
        TypeError, ValueError: If an argument is invalid.
        OSError: When training begins, if a folder can't be written.

    Example: `model.fit(x, y, callbacks=[gradstab.callbacks.GradientMonitor("runs/first")])`.
    """

    # `training.train` asks: this callback need not be called after every single step.
    needs_every_batch = False
    # Keras asks: it may be called from another thread while the next step runs.
    async_safe = True

    def __init__(
        self,
        run_dir: str | os.PathLike[str] | None = None,
        tensorboard_dir: str | os.PathLike[str] | None = None,
        every_n_steps: int = 50,
        *,
        activations: bool = False,
        effective_rates: bool = False,
        probe: Any = None,
    ) -> None:
        super().__init__()
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.tensorboard_dir = None if tensorboard_dir is None else Path(tensorboard_dir)
        self.every_n_steps = check_int("every_n_steps", every_n_steps)
        self.activations = activations
        self.effective_rates = check_bool("effective_rates", effective_rates)
        self.probe = probe
        self._batch = check_probe(probe)
        self._watches: list[Watch] = []
        self._layers: tuple[str, ...] = ()
        self._pace = Pace(self.every_n_steps, at_each=self.effective_rates)
        self._logs_are_due = False
        self._has_told_unused = False
        self._examples: Liveness | None = None
        self._closing: Closing | None = None
        # `training.train` sets these: where it goes on with the run that the record tells of, and
        # where it wants a record and the logs as they are.
        self.resumes_record, self.adds_to_logs = False, True
        # A step is either run or read.
        self._lock = threading.RLock()

    @property
    def _observer(self) -> Observer | None:
        """What measures the first optimizer."""
        return self._watches[0].observer if self._watches else None

    def on_train_begin(self, logs: MutableMapping[str, Any] | None = None) -> None:
        """Begin to watch the model's steps, and open the record."""
        bind(self.model)
        optimizers = optimizers_of(self.model)
        own = self.model.optimizer
        if self.model.built and trains_the_whole(self.model):
            with self.model.distribute_strategy.scope():
                own.build(self.model.trainable_variables)
        before = {watch.name: watch for watch in self._watches}
        if list(before) != list(optimizers) or not all(
            before[name].observer.observes(self.model, each)
            and before[name].observer.belongs_to(self)
            for name, each in optimizers.items()
        ):
            self._watches = self._new_watches(optimizers)
        for watch, optimizer in zip(self._watches, optimizers.values(), strict=True):
            watch.begin(LayerRates(optimizer) if self.effective_rates else None)
        if len(self._watches) == 1:
            self._watches[0].open(self._open)
        elif self.run_dir is not None:
            self.run_dir.mkdir(parents=True, exist_ok=True)
        for watch in self._watches[:1]:
            listen(self.model, watch.tell)
        self._has_told_unused = False
        # Effective rates are not kept on the device: what is not read now is gone.
        self._pace = Pace(self.every_n_steps, at_each=self.effective_rates)
        self._pace.set_capacity(self._capacity)
        self._examples = Liveness(self.model, at_start=False)
        self._closing = Closing.join(self.model)
        if self.adds_to_logs:
            feed_epoch_logs(self.model, self._logs_once)

    def on_epoch_begin(self, epoch: int, logs: MutableMapping[str, Any] | None = None) -> None:
        """Begin a new count."""
        for watch in self._watches:
            watch.begin_epoch()
        self._pace.begin_epoch()
        self._logs_are_due = True
        if self._examples is not None:
            self._examples.await_batch()

    def see_examples(self, batch: Any) -> None:
        """Take some examples to look at the model with; `training.train` shows them."""
        if self._examples is not None:
            self._examples.see_batch(batch)

    def on_train_batch_end(self, batch: int, logs: MutableMapping[str, Any] | None = None) -> None:
        """Read once n steps have passed."""
        # Without the lock, which the next step holds already: waiting for it costs that step time.
        self._pace.see(batch)
        if self._pace.is_time():
            with self._lock:
                if self._pace.is_time():
                    self._look()

    def on_epoch_end(self, epoch: int, logs: MutableMapping[str, Any] | None = None) -> None:
        """Sum the epoch up in its logs, if nothing did before."""
        scalars = self._logs_once()
        if logs is not None and self.adds_to_logs:
            logs.update(scalars)
        for watch in self._watches:
            watch.end_epoch(epoch, logs or {})
        if not self._has_told_unused:
            self._has_told_unused = True
            self._tell_unused()

    def epoch_logs(self) -> dict[str, float]:
        """Return what this epoch's steps add to its logs, up to now."""
        if any(watch.has_news for watch in self._watches):
            self._look()
        return named(self._watches, Watch.epoch_logs)

    def on_train_end(self, logs: MutableMapping[str, Any] | None = None) -> None:
        """Close the record and draw it, and leave the model as it was."""
        closing, self._closing = self._closing, None
        if closing is None:
            return
        stop_feeding(self.model, self._logs_once)
        for watch in reversed(self._watches):
            watch.observer.uninstall()
        self._look()
        self._tell_zero()
        for watch in self._watches:
            watch.end(closing.diverged, closing.interrupted)
            if watch.observer.telemetry.is_used:
                latest = watch.latest
                closing.tell(
                    watch.name, watch.totals, None if latest is None else latest.divergence
                )
        self._examples, self.resumes_record = None, False
        closing.leave(self.params)

    def stop_after(self, error: BaseException) -> None:
        """Close the record of a run that raised, of which Keras does not tell its callbacks."""
        if self._closing is not None:
            self._closing.interrupted = type(error).__name__
            self.on_train_end()

    def _logs_once(self) -> dict[str, float]:
        """Return the scalars when they are asked for first: for the epoch, not an evaluation."""
        if not self._logs_are_due:
            return {}
        self._logs_are_due = False
        return {**self.epoch_logs(), **loss_of_no_step(self.model)}

    def _new_watches(self, optimizers: Mapping[str, Any]) -> list[Watch]:
        if self.activations and not self.model.built:
            warnings.warn(
                "`activations` needs a built model, whose layers are known before the first step. "
                f"Received: model={self.model.name!r}, which has no weights yet. Call it on a "
                "batch before `fit`, or give its first layer an input shape",
                stacklevel=2,
            )
        observers = observers_of(
            self.model,
            optimizers,
            self,
            self._lock,
            every_n_steps=self.every_n_steps,
            bins=0 if self.tensorboard_dir is None else _BINS,
            activations=bool(self.activations and self.model.built),
            probe=self._batch,
            probe_as_given=self.probe,
        )
        self._layers = next((each.layers for each in observers.values()), ())
        return [Watch(name, observer) for name, observer in observers.items()]

    @property
    def _capacity(self) -> int:
        """Samples that can wait to be read."""
        return min((watch.observer.sampler.capacity for watch in self._watches), default=0)

    def _look(self) -> None:
        with self._lock:
            self._pace.set_capacity(self._capacity)
            self._pace.looked()
            for watch in self._watches:
                watch.read(self._open)

    def _tell_unused(self) -> None:
        """Say which optimizers took no step, of a model that holds several."""
        unused = [watch for watch in self._watches if not watch.observer.telemetry.is_used]
        if len(self._watches) > 1 and unused:
            names = ", ".join(f"`{w.name}` ({w.observer.describe()})" for w in unused)
            warnings.warn(
                f"The model {self.model.name!r} holds optimizers that took no step in the first "
                f"epoch: {names}. They are not monitored",
                stacklevel=2,
            )

    def _tell_zero(self) -> None:
        """Say that the gradient was zero at all steps, and which layer stops it."""
        ran = [watch for watch in self._watches if watch.steps]
        if not ran or any(watch.has_moved for watch in ran):
            return
        layer = None if self._examples is None else stopping_layer(self._examples.look())
        told = str(of_zero_gradient(max(watch.steps for watch in ran), layer))
        for watch in ran:
            watch.tell("zero_gradient", told)
        warnings.warn(told, stacklevel=2)

    def _open(self, watch: Watch) -> list[Sink] | None:
        """Open what is written to, once the variables are known. Of several workers one writes."""
        if not watch.observer.telemetry.paths or not is_chief(self.model.distribute_strategy):
            return None
        folder = ""
        if len(self._watches) > 1:
            if not watch.observer.telemetry.is_used:
                return None
            first = next(each for each in self._watches if each.observer.telemetry.is_used)
            folder = "" if watch is first else watch.name
        return open_sinks(
            watch,
            None if self.run_dir is None else self.run_dir / folder,
            None if self.tensorboard_dir is None else self.tensorboard_dir / folder,
            self.every_n_steps,
            self._layers if watch is self._watches[0] else (),
            resumes=self.resumes_record,
        )
