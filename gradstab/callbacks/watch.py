"""One optimizer that a run's monitor watches, with its readings and sinks."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradstab._nesting import unwrapped
from gradstab.callbacks.layer_rates import LayerRates
from gradstab.callbacks.run_totals import RunTotals
from gradstab.callbacks.sinks import RecordSink, Sink
from gradstab.callbacks.tensorboard_sink import TensorBoardSink
from gradstab.diagnosis.origin.bad_steps import BadSteps
from gradstab.monitoring.entries import Totals
from gradstab.optimizers.telemetry.reading import Reading
from gradstab.optimizers.watching.find import stabilized_optimizer
from gradstab.optimizers.watching.observer import Observer
from gradstab.transforms.clipping import ClipByGlobalNorm


class Watch:
    """What the monitor holds of one optimizer while a run lasts.

    Args:
        name: Name of the optimizer in the model.
        observer: Measures its steps.

    Attributes:
        rates: Effective rates, where they are asked for.
        readings: What was read in this epoch.
    """

    def __init__(self, name: str, observer: Observer) -> None:
        self.name = name
        self.observer = observer
        self.rates: LayerRates | None = None
        self._sinks: list[Sink] | None = None
        self.readings: list[Reading] = []
        self._latest_ratio = float("nan")
        self._cursor = self._calls_read = 0
        self.begun: Reading | None = None
        self.latest: Reading | None = None
        self.has_moved = False
        self._totals: RunTotals | None = None
        self._iterations = self._origins_told = 0
        self._bad_steps: BadSteps | None = None

    def begin(self, rates: LayerRates | None) -> None:
        """Begin a run."""
        self._bad_steps = BadSteps.join(self.observer.model)
        self._bad_steps.watch(self.observer.telemetry)
        self._origins_told = 0
        self.observer.install()
        self.rates = rates
        self.begun = self.latest = self.observer.telemetry.peek()
        self._cursor = self.begun.cursor
        self._totals = RunTotals(self.begun, self.observer.optimizer)
        self._iterations = self._totals.calls_before
        self._sinks, self.readings, self.has_moved = None, [], False

    def begin_epoch(self) -> None:
        """Begin a new count."""
        self.readings = []

    @property
    def steps(self) -> int:
        """Steps of this run, as far as they were read."""
        return self._cursor - (0 if self.begun is None else self.begun.cursor)

    @property
    def steps_before(self) -> int:
        """Steps that the optimizer had counted when this run began."""
        return 0 if self.begun is None else self.begun.cursor

    @property
    def offset(self) -> int:
        """Steps before this run that nobody counted: those of an optimizer not gradstab's."""
        if stabilized_optimizer(self.observer.optimizer) is not None:
            return 0
        return max(0, self._iterations - self.steps_before)

    @property
    def has_news(self) -> bool:
        """Whether a step may have run since the last reading."""
        calls = self.observer.calls
        return not self.readings or calls == 0 or calls != self._calls_read

    def read(self, open_sinks: Callable[[Watch], list[Sink] | None]) -> None:
        """Read what happened since the last time, and put it where it belongs.

        Args:
            open_sinks: Makes what takes readings, as soon as it is known what there is to take.
        """
        observer, since = self.observer, self._cursor
        self._calls_read = observer.calls
        self.latest = reading = observer.telemetry.peek(since=since, sampler=observer.sampler)
        self._cursor = reading.cursor
        observer.settle(reading.cursor)
        self.has_moved |= reading.shows_gradient
        self.readings.append(reading)
        if self._totals is not None:
            self._totals.see(reading)
        self.open(open_sinks)
        rates = None
        if self._sinks and self.rates is not None and reading.cursor > since:
            rates = self.rates.read()
        self._put(lambda sink: sink.write(reading, rates))
        self._tell_origins(reading)
        if reading.cursor > since:
            self._put_totals()

    @property
    def totals(self) -> Totals:
        """Counts and extremes over every step of this run, as far as they were read."""
        return Totals() if self._totals is None else self._totals.totals

    def open(self, open_sinks: Callable[[Watch], list[Sink] | None]) -> None:
        """Open what readings are written to, if that can be done by now."""
        if self._sinks is None:
            self._sinks = open_sinks(self)

    def end_epoch(self, epoch: int, logs: Mapping[str, Any]) -> None:
        """Have written what is due at the end of an epoch, and warn if most steps were limited.

        Args:
            epoch: Number of the epoch, from 0.
            logs: Its losses and metrics.
        """
        self.observer.telemetry.warn_of_limits()
        self._put_totals(with_rate=True)
        self._put(lambda sink: sink.end_epoch(epoch + 1, self._cursor, logs))

    def _put_totals(self, *, with_rate: bool = False) -> None:
        """Have the totals written; the rate is looked at where that is asked for."""
        if self._totals is None:
            return
        if with_rate:
            self._totals.see_rate()
        totals = self._totals.totals
        self._put(lambda sink: sink.totals(totals, self._cursor))

    def tell(
        self,
        event: str,
        message: str,
        cause: str | None = None,
        step: int | None = None,
        layer: str | None = None,
    ) -> None:
        """Have something that happened written.

        Args:
            event: What.
            message: In words.
            cause: The rule that told of it.
            step: Steps of this run until then; by default, those that were read.
            layer: The layer that it is about.
        """
        begun = 0 if self.begun is None else self.begun.cursor
        number = self._cursor if step is None else begun + step
        self._put(lambda sink: sink.event(event, number, message, cause, layer))

    def _tell_origins(self, reading: Reading) -> None:
        """Have written what began steps that were not finite, each once."""
        bad = self._bad_steps
        if bad is None:
            return
        bad.see(reading)
        for each in bad.found[self._origins_told :]:
            step = None if each.step is None else each.step - self.steps_before
            self.tell("origin", str(each), each.kind, step, each.layer)
        self._origins_told = len(bad.found)

    def end(self, diverged: str | None = None, interrupted: str | None = None) -> None:
        """Close what readings are written to.

        Args:
            diverged: Why somebody stopped the run, or `None`.
            interrupted: Name of the exception that ended it, or `None`.
        """
        latest = self.latest
        if latest is not None:
            began = "" if self._bad_steps is None else self._bad_steps.told()
            why = diverged if latest.divergence is None else latest.divergence.told(origin=began)
            self._put_totals(with_rate=True)
            self._put(lambda sink: sink.end(latest, why, interrupted))
        self._sinks = None
        if self._bad_steps is not None:
            self._bad_steps.leave()
            self._bad_steps = None

    def epoch_logs(self) -> dict[str, float]:
        """Return what the steps of this epoch add to its logs, up to now."""
        norms = np.concatenate([np.zeros(0), *(reading.grad_norm for reading in self.readings)])
        finite = norms[np.isfinite(norms)]
        samples = [reading.samples for reading in self.readings if reading.samples is not None]
        ratios = np.concatenate([np.zeros(0), *(sample.update_ratio for sample in samples)])
        ratios = ratios[np.isfinite(ratios)]
        if len(ratios):
            self._latest_ratio = float(ratios[-1])
        return {
            "grad_norm": float(finite.mean()) if len(finite) else float("nan"),
            "grad_norm_max": float(finite.max()) if len(finite) else float("nan"),
            "clipped": int(sum(reading.clipped.sum() for reading in self.readings)),
            "limited": int(sum(reading.limited.sum() for reading in self.readings)),
            "skipped": int(sum(reading.skipped.sum() for reading in self.readings)),
            # An epoch may be shorter than the way from one sample to the next.
            "update_ratio": float(ratios.mean()) if len(ratios) else self._latest_ratio,
        }

    def _put(self, put: Callable[[Sink], None]) -> None:
        """Put something into each sink; one that can't be written any more is left out."""
        for sink in tuple(self._sinks or ()):
            try:
                put(sink)
            except OSError as error:
                self._sinks = [each for each in self._sinks or () if each is not sink]
                with contextlib.suppress(OSError):
                    sink.close()
                warnings.warn(
                    "Nothing more of this run is recorded there, since it can't be written: "
                    f"{error}. Training goes on. Make room, or give the monitor another folder",
                    stacklevel=2,
                )


def named(watches: Sequence[Watch], logs: Callable[[Watch], dict[str, Any]]) -> dict[str, Any]:
    """Return logs of all optimizers that took steps, by name where there are several of them."""
    used = [watch for watch in watches if watch.observer.telemetry.is_used]
    if len(used) == 1:
        return logs(used[0])
    return {f"{watch.name}/{key}": v for watch in used for key, v in logs(watch).items()}


def open_sinks(
    watch: Watch,
    run_dir: Path | None,
    tensorboard_dir: Path | None,
    every_n_steps: int,
    layers: Sequence[str],
    *,
    resumes: bool = False,
) -> list[Sink]:
    """Return what takes the readings of an optimizer.

    Args:
        watch: The optimizer.
        run_dir: Folder for record and figures, or `None` for neither.
        tensorboard_dir: Folder for TensorBoard's event files, or `None` for none.
        every_n_steps: Steps between two samples.
        layers: Names of the layers whose activations are sampled.
        resumes: Whether the run is the latest one in the record, resumed.
    """
    paths = watch.observer.telemetry.paths
    trained_layers = () if watch.rates is None else watch.rates.begin(paths)
    sinks: list[Sink] = []
    if tensorboard_dir is not None:
        sinks.append(TensorBoardSink(tensorboard_dir, paths, layers, trained_layers))
    if run_dir is not None:
        optimizer = watch.observer.optimizer
        config = {
            "optimizer": _describe(optimizer),
            "every_n_steps": every_n_steps,
            "max_norm": _bound(optimizer),
        }
        sinks.append(
            RecordSink(
                run_dir,
                every_n_steps,
                paths,
                layers,
                trained_layers,
                config,
                after_step=watch.steps_before,
                resumes=resumes,
                offset=watch.offset if resumes else 0,
            )
        )
    return sinks


def _describe(optimizer: Any) -> str:
    """Return the chain of an optimizer of gradstab's, or the name of another."""
    ours = stabilized_optimizer(optimizer)
    return repr(ours) if ours is not None else type(optimizer).__name__


def _bound(given: Any) -> float | None:
    """Return the tightest bound on the global norm, to be drawn beside it."""
    optimizer = stabilized_optimizer(given)
    if optimizer is None:
        return getattr(unwrapped(given), "global_clipnorm", None) or None
    bounds = [t.max_norm for t in optimizer.transforms if isinstance(t, ClipByGlobalNorm)]
    return min(bounds, default=None)
