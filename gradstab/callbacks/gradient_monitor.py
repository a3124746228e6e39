"""Shows what the gradients do: in the logs, in a run record, in TensorBoard."""

from __future__ import annotations

import math
import os
import threading
import time
import warnings
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, final

import keras
import numpy as np

from gradstab._validation import check_bool, check_int
from gradstab.callbacks.epoch_logs import feed_epoch_logs, stop_feeding
from gradstab.callbacks.layer_rates import LayerRates
from gradstab.callbacks.probe import ProbeLoss, check_probe
from gradstab.callbacks.sinks import RecordSink, Sink, TensorBoardSink
from gradstab.optimizers.activations import Activations
from gradstab.optimizers.distribution import is_chief
from gradstab.optimizers.find import bind, loss_of_no_step, stabilized_optimizer
from gradstab.optimizers.observed import Observer
from gradstab.optimizers.reading import CAPACITY, Reading
from gradstab.optimizers.sampling import Sampler
from gradstab.transforms.clipping import ClipByGlobalNorm

# Reading holds the steps up for a millisecond or two: where steps are short, not at each sample.
_SECONDS_BETWEEN_LOOKS = 1.0
# Bins of the histograms for TensorBoard.
_BINS = 30


@final
class GradientMonitor(keras.callbacks.Callback):
    """Adds gradient norms, clips and skips to the logs, and writes a run record or TensorBoard.

    It works on any compiled model: it reads what a `StabilizedOptimizer` measured inside the
    compiled step, and has any other optimizer's step measured in the same way while the run lasts.
    So it costs a look each second at most, or before more steps than can wait, and no second
    backward pass, and changes neither what is trained nor what is saved. The logs get, for History,
    CSVLogger, the progress bar and every other callback, wherever it stands in the list:

    | key | in a batch's logs, of the last step | in an epoch's logs |
    |---|---|---|
    | `grad_norm` | global gradient norm before the transforms | mean where it is finite |
    | `grad_norm_max` | the same | largest finite one |
    | `clipped` | 1 if a transform clipped | number of such steps |
    | `skipped` | 1 if the step was skipped | number of such steps |
    | `update_ratio` | norm of update over norm of weights, latest sample | mean of samples |

    Samples are closer looks at the run's first step and every n-th one: for every variable the
    gradient norm before and after the transforms, largest magnitude, share of zeros, entries that
    are not finite, the norms of weights and update with their ratio, and the change of the loss
    that the gradient predicts, g·Δw.

    With `run_dir` it writes `record.jsonl` (`monitoring.read_record` reads it, `gradstab report`
    makes a page of it): the samples, each skipped step with its cause and the first variable at
    fault, and how the run ended; and, where matplotlib is installed, the figures
    `gradient_norm.png` and `layer_norms.png` when training ends. With `tensorboard_dir` it writes
    scalars, a histogram of each gradient, and the heat map of the layers; this takes
    `pip install "gradstab[tensorboard]"`.

    Args:
        run_dir: Folder for record and figures, or `None` for neither.
        tensorboard_dir: Folder for TensorBoard's event files, or `None` for none.
        every_n_steps: Steps between two samples.
        activations: Whether samples tell of the layers' outputs too: mean, deviation, share
            saturated, share dead. The model has to be built.
        effective_rates: Whether record and TensorBoard tell what Adagrad, RMSprop or Adam make of
            the learning rate: of each layer the median and quantiles over its weights, whenever the
            monitor looks, every n steps in `fit`. They are read between steps.
        probe: A batch `(x, y)` or `(x, y, sample_weight)` kept aside. Its loss before and after a
            sampled step, beside what its gradient predicts, shows whether steps are in the linear
            regime: two passes forward and one backward in each sample.

    Raises:
        ImportError: When training begins, if `tensorboard_dir` is given and TensorBoard is missing.
        TypeError: If `every_n_steps` is no integer, or `effective_rates` neither true nor false.
        ValueError: If it is below 1, or if `probe` is no such tuple.
        OSError: When training begins, if a folder can't be written.

    Example:
    ```python
    model.compile(gradstab.stabilize("adam"), loss)
    model.fit(x, y, callbacks=[gradstab.callbacks.GradientMonitor("runs/first")])
    ```
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
        self._observer: Observer | None = None
        self._layers: tuple[str, ...] = ()
        self._rates: LayerRates | None = None
        self._sinks: list[Sink] | None = None
        self._cursor = 0
        self._steps_before = 0
        self._last_batch = -1
        self._looked_at = 0
        self._looked = -math.inf
        self._set_pace()
        self._calls_read = 0
        self._epoch: list[Reading] = []
        self._latest_ratio = float("nan")
        self._logs_are_due = False
        # A step is either run or read.
        self._lock = threading.RLock()

    def on_train_begin(self, logs: MutableMapping[str, Any] | None = None) -> None:
        """Begin to watch the model's steps, and open the record."""
        optimizer = bind(self.model)
        if optimizer is not None and self.model.built:
            with self.model.distribute_strategy.scope():
                optimizer.build(self.model.trainable_variables)
        if self._observer is None or not self._observer.observes(self.model):
            self._observer = self._new_observer()
        self._observer.install()
        self._rates = LayerRates(self.model.optimizer) if self.effective_rates else None
        self._open(self._observer)
        self._cursor = self._observer.telemetry.peek().cursor
        self._steps_before, self._last_batch, self._looked_at = 0, -1, 0
        self._looked = -math.inf
        self._set_pace()
        feed_epoch_logs(self.model, self._logs_once)

    def on_epoch_begin(self, epoch: int, logs: MutableMapping[str, Any] | None = None) -> None:
        """Begin a new count."""
        self._epoch = []
        self._steps_before, self._last_batch = self._steps_run, -1
        if self._looked_at:  # All was read when the last epoch ended, however long ago that is.
            self._looked = time.monotonic()
        self._logs_are_due = True

    def on_train_batch_end(self, batch: int, logs: MutableMapping[str, Any] | None = None) -> None:
        """Read once n steps have passed."""
        # Without the lock, which the next step holds already: waiting for it costs that step time.
        if batch > self._last_batch:
            self._last_batch = batch
        if self._is_time_to_look():
            with self._lock:
                if self._is_time_to_look():
                    self._look()

    def on_epoch_end(self, epoch: int, logs: MutableMapping[str, Any] | None = None) -> None:
        """Sum the epoch up in its logs, if nothing did before."""
        if logs is not None and self._logs_are_due:
            logs.update(self._logs_once())
        for sink in self._sinks or ():
            sink.end_epoch()

    def epoch_logs(self) -> dict[str, float]:
        """Return what this epoch's steps add to its logs, up to now."""
        if self._has_news():
            self._look()
        norms = np.concatenate([reading.grad_norm for reading in self._epoch])
        finite = norms[np.isfinite(norms)]
        samples = [reading.samples for reading in self._epoch if reading.samples is not None]
        ratios = np.concatenate([[], *(sample.update_ratio for sample in samples)])
        ratios = ratios[np.isfinite(ratios)]
        if len(ratios):
            self._latest_ratio = float(ratios[-1])
        return {
            "grad_norm": float(finite.mean()) if len(finite) else float("nan"),
            "grad_norm_max": float(finite.max()) if len(finite) else float("nan"),
            "clipped": int(sum(reading.clipped.sum() for reading in self._epoch)),
            "skipped": int(sum(reading.skipped.sum() for reading in self._epoch)),
            # An epoch may be shorter than the way from one sample to the next.
            "update_ratio": float(ratios.mean()) if len(ratios) else self._latest_ratio,
        }

    def on_train_end(self, logs: MutableMapping[str, Any] | None = None) -> None:
        """Close the record and draw it, and leave the model as it was."""
        stop_feeding(self.model, self._logs_once)
        if self._observer is None:
            return
        self._observer.uninstall()
        reading = self._look()
        for sink in self._sinks or ():
            sink.end(reading)
        self._sinks = None

    def _logs_once(self) -> dict[str, float]:
        """Return the scalars when they are asked for first: for the epoch, not an evaluation."""
        if not self._logs_are_due:
            return {}
        self._logs_are_due = False
        return {**self.epoch_logs(), **loss_of_no_step(self.model)}

    def _new_observer(self) -> Observer:
        activations = None
        if self.activations and not self.model.built:
            warnings.warn(
                "`activations` needs a built model, whose layers are known before the first step. "
                f"Received: model={self.model.name!r}, which has no weights yet. Call it on a "
                "batch before `fit`, or give its first layer an input shape",
                stacklevel=2,
            )
        elif self.activations:
            activations = Activations(self.model)
        self._layers = () if activations is None else activations.layers
        probe = None if self._batch is None else ProbeLoss(self.model, self._batch, activations)
        bins = 0 if self.tensorboard_dir is None else _BINS
        sampler = Sampler(self.every_n_steps, bins=bins, probe=probe, activations=activations)
        return Observer(self.model, sampler, activations, self._lock)

    @property
    def _steps_run(self) -> int:
        """Steps of this run, as far as the loop has told."""
        return self._steps_before + self._last_batch + 1

    def _is_time_to_look(self) -> bool:
        unread = self._steps_run - self._looked_at
        if unread < self._least_unread:
            return False
        # Effective rates are not kept on the device: what is not read now is gone.
        if self.effective_rates or unread >= self._most_unread:
            return True
        return time.monotonic() - self._looked >= _SECONDS_BETWEEN_LOOKS

    def _set_pace(self) -> None:
        """Say how many steps may pass until the next look: not more than can wait on the device."""
        samples = 1 if self._observer is None else max(1, self._observer.sampler.capacity // 2)
        self._most_unread = min(CAPACITY // 2, samples * self.every_n_steps)
        self._least_unread = min(self._most_unread, self.every_n_steps)

    def _has_news(self) -> bool:
        """Whether a step may have run since the last reading."""
        calls = 0 if self._observer is None else self._observer.calls
        return not self._epoch or calls == 0 or calls != self._calls_read

    def _look(self) -> Reading:
        observer = self._observer
        if observer is None:
            raise RuntimeError("GradientMonitor reads what a run measures, and none has begun")
        with self._lock:
            self._looked_at = self._steps_run
            self._set_pace()
            self._looked = time.monotonic()
            self._calls_read = observer.calls
            since = self._cursor
            reading = observer.telemetry.peek(since=since, sampler=observer.sampler)
            self._cursor = reading.cursor
            observer.settle(reading.cursor)
            self._epoch.append(reading)
            self._open(observer)
            rates = None
            if self._sinks and self._rates is not None and reading.cursor > since:
                rates = self._rates.read()
            for sink in self._sinks or ():
                sink.write(reading, rates)
        return reading

    def _open(self, observer: Observer) -> None:
        """Open what is written to, once the variables are known. Of several workers one writes."""
        paths = observer.telemetry.paths
        if self._sinks is not None or not paths or not is_chief(self.model.distribute_strategy):
            return
        sinks: list[Sink] = []
        trained_layers = () if self._rates is None else self._rates.begin(paths)
        if self.tensorboard_dir is not None:
            sinks.append(TensorBoardSink(self.tensorboard_dir, paths, self._layers, trained_layers))
        if self.run_dir is not None:
            config = {
                "optimizer": _describe(self.model.optimizer),
                "every_n_steps": self.every_n_steps,
                "max_norm": _bound(self.model),
            }
            sinks.append(
                RecordSink(
                    self.run_dir, self.every_n_steps, paths, self._layers, trained_layers, config
                )
            )
        self._sinks = sinks


def _describe(optimizer: Any) -> str:
    """Return the chain of an optimizer of gradstab's, or the name of another."""
    ours = stabilized_optimizer(optimizer)
    return repr(ours) if ours is not None else type(optimizer).__name__


def _bound(model: Any) -> float | None:
    """Return the tightest bound on the global norm, to be drawn beside it."""
    optimizer = stabilized_optimizer(model)
    if optimizer is None:
        own = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        return getattr(own, "global_clipnorm", None) or None
    bounds = [t.max_norm for t in optimizer.transforms if isinstance(t, ClipByGlobalNorm)]
    return min(bounds, default=None)
