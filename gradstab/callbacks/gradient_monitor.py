"""Shows what the gradients do, in the logs and in a run record."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any, final

import keras
import numpy as np

from gradstab._validation import check_int
from gradstab.monitoring.record import read_record
from gradstab.monitoring.writer import RecordWriter
from gradstab.optimizers.distribution import is_chief
from gradstab.optimizers.find import bind, stabilized_optimizer
from gradstab.optimizers.observed import Observer
from gradstab.optimizers.reading import Reading
from gradstab.optimizers.telemetry import CAPACITY, Telemetry
from gradstab.reports.figures import plot_gradient_norm, save
from gradstab.transforms.clipping import ClipByGlobalNorm

# Where Keras makes the logs of an epoch; see `_feed_epoch_logs`.
_LOGS_HOOK = "_get_metrics_result_or_logs"


@final
class GradientMonitor(keras.callbacks.Callback):
    """Adds gradient norms, clips and skips to the logs, and writes the run record.

    It works on any compiled model: it reads what a `StabilizedOptimizer` measured inside the
    compiled step, and has any other optimizer's step measured in the same way while the run lasts.
    So it costs a look at most every `every_n_steps` steps and no second backward pass, and changes
    neither what is trained nor what is saved. The epoch's logs get, for History,
    CSVLogger, the progress bar and every other callback, wherever it stands in the list:

    | key | meaning, over the epoch's steps |
    |---|---|
    | `grad_norm` | mean global gradient norm before the transforms, of the steps where it is finite
    | | `grad_norm_max` | largest of them | | `clipped` | number of steps in which a transform
    clipped | | `skipped` | number of steps that were skipped |

    With `run_dir` it writes `record.jsonl` (`monitoring.read_record` reads it): every n-th step
    with its norms and loss, each skipped step with its cause and the first variable at fault, and
    the norm of each variable's gradient where it looked; and, where matplotlib is installed, the
    plot `gradient_norm.png` when training ends.

    Args:
        run_dir: Folder for record and plot, or `None` for neither.
        every_n_steps: Steps between two entries of the record.

    Raises:
        TypeError: If `every_n_steps` is no integer.
        ValueError: If it is below 1.
        OSError: When training begins, if `run_dir` can't be written.

    Example:
    ```python
    model.compile(gradstab.stabilize("adam"), loss)
    model.fit(x, y, callbacks=[gradstab.callbacks.GradientMonitor("runs/first")])
    ```
    """

    # `training.train` asks: this callback need not be called after every single step.
    needs_every_batch = False

    def __init__(
        self, run_dir: str | os.PathLike[str] | None = None, every_n_steps: int = 50
    ) -> None:
        super().__init__()
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.every_n_steps = check_int("every_n_steps", every_n_steps)
        self._writer: RecordWriter | None = None
        self._observer: Observer | None = None
        self._cursor = 0
        self._batches = 0
        self._epoch: list[Reading] = []
        self._logs_are_due = False

    def on_train_begin(self, logs: MutableMapping[str, Any] | None = None) -> None:
        """Bind the model or begin to watch its optimizer, and open the record."""
        optimizer = bind(self.model)
        if optimizer is not None and self.model.built:
            with self.model.distribute_strategy.scope():
                optimizer.build(self.model.trainable_variables)
        if optimizer is None:
            if self._observer is None or not self._observer.observes(self.model):
                self._observer = Observer(self.model)
            self._observer.install()
        self._open()
        self._cursor = self._telemetry().peek().cursor
        self._batches = 0
        _feed_epoch_logs(self.model, self._logs_once)

    def on_epoch_begin(self, epoch: int, logs: MutableMapping[str, Any] | None = None) -> None:
        """Begin a new count."""
        self._epoch = []
        self._logs_are_due = True

    def on_train_batch_end(self, batch: int, logs: MutableMapping[str, Any] | None = None) -> None:
        """Look every n-th time."""
        self._batches += 1
        if self._batches >= min(self.every_n_steps, CAPACITY):
            self._look()

    def on_epoch_end(self, epoch: int, logs: MutableMapping[str, Any] | None = None) -> None:
        """Sum the epoch up in its logs, if nothing did before."""
        if logs is not None and "grad_norm" not in logs:
            logs.update(self.epoch_logs())

    def epoch_logs(self) -> dict[str, float]:
        """Return what this epoch's steps add to its logs, up to now."""
        self._look()
        norms = np.concatenate([reading.grad_norm for reading in self._epoch])
        finite = norms[np.isfinite(norms)]
        return {
            "grad_norm": float(finite.mean()) if len(finite) else float("nan"),
            "grad_norm_max": float(finite.max()) if len(finite) else float("nan"),
            "clipped": int(sum(reading.clipped.sum() for reading in self._epoch)),
            "skipped": int(sum(reading.skipped.sum() for reading in self._epoch)),
        }

    def on_train_end(self, logs: MutableMapping[str, Any] | None = None) -> None:
        """Close the record and draw it, and leave the model as it was."""
        _stop_feeding(self.model)
        if self._observer is not None:
            self._observer.uninstall()
        if self._writer is None or self.run_dir is None:
            return
        self._look()
        divergence = self._telemetry().peek().divergence
        if divergence is None:
            self._writer.event("end", step=self._cursor)
        else:
            self._writer.event(
                "stop", step=self._cursor, cause="divergence", message=str(divergence)
            )
        self._writer.close()
        self._writer = None
        _draw(self.run_dir)

    def _logs_once(self) -> dict[str, float]:
        """Return the scalars when they are asked for first: for the epoch, not an evaluation."""
        if not self._logs_are_due:
            return {}
        self._logs_are_due = False
        return self.epoch_logs()

    def _telemetry(self) -> Telemetry:
        """Return what is measured: by an optimizer of gradstab's, or beside another."""
        optimizer = stabilized_optimizer(self.model)
        if optimizer is not None:
            return optimizer.telemetry
        if self._observer is None:
            self._observer = Observer(self.model)
        return self._observer.telemetry

    def _look(self) -> None:
        self._batches = 0
        reading = self._telemetry().peek(since=self._cursor)
        self._cursor = reading.cursor
        self._epoch.append(reading)
        self._open()
        if self._writer is not None:
            self._write(self._writer, reading)

    def _open(self) -> None:
        """Open the record, once the variables are known. Of several workers one writes it."""
        paths = self._telemetry().paths
        chief = is_chief(self.model.distribute_strategy)
        if self.run_dir is None or self._writer is not None or not paths or not chief:
            return
        self._writer = RecordWriter(
            self.run_dir,
            variables=paths,
            config={
                "optimizer": _describe(self.model.optimizer),
                "every_n_steps": self.every_n_steps,
                "max_norm": _bound(self.model),
            },
        )

    def _write(self, writer: RecordWriter, reading: Reading) -> None:
        if reading.missed:
            writer.event("missed", step=reading.cursor, steps=reading.missed)
        for row, number in enumerate(reading.steps):
            last = row == len(reading.steps) - 1
            if reading.skipped[row]:
                writer.event(
                    "skip",
                    step=int(number),
                    cause=reading.cause[row],
                    variable=reading.bad_variable[row],
                )
            if last or number % self.every_n_steps == 0:
                writer.step(
                    int(number),
                    {
                        "loss": reading.loss[row],
                        "grad_norm": reading.grad_norm[row],
                        "grad_norm_after": reading.grad_norm_after[row],
                        "clipped": int(reading.clipped[row]),
                        "skipped": int(reading.skipped[row]),
                    },
                    {"grad_norm": list(reading.norms.values())} if last else None,
                )


def _feed_epoch_logs(model: Any, scalars: Callable[[], dict[str, float]]) -> None:
    """Have `fit` put scalars into an epoch's logs before any callback gets them.

    A callback can add to the logs for those after it only, and Keras has no public place before the
    first. Its private `_get_metrics_result_or_logs` makes the logs of an epoch and of an
    evaluation; it is replaced on this one model, for this one run: `History` is another in the
    next.
    """
    _stop_feeding(model)
    original = getattr(model, _LOGS_HOOK, None)
    if original is None:
        return  # Another version of Keras: callbacks after the monitor see the scalars.
    history = model.history

    def with_scalars(logs: Any) -> Any:
        result = original(logs)
        if model.history is not history:
            _stop_feeding(model)
            return result
        return {**result, **scalars()}

    setattr(model, _LOGS_HOOK, with_scalars)


def _stop_feeding(model: Any) -> None:
    vars(model).pop(_LOGS_HOOK, None)


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


def _draw(run_dir: Path) -> None:
    """Draw the record, if matplotlib is there and something was recorded."""
    record = read_record(run_dir)
    if not len(record.steps):
        return
    # A run must not fail at its end for want of an extra.
    with contextlib.suppress(ImportError):
        save(plot_gradient_norm(record), run_dir / "gradient_norm.png")
