"""Several processes that train one model: writing, agreement, and loss of a worker."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from gradstab._errors import WorkerLostError
from gradstab._replicas import count_workers, is_chief
from gradstab.keras_hooks.collectives import abort_collectives

# Every worker has to run the same number of steps in a call, so none can go by its own clock.
STEPS_PER_CALL = 32


class Workers:
    """The processes of a run: one, unless a `MultiWorkerMirroredStrategy` spans more.

    Args:
        strategy: The strategy of the model.
        timeout: Seconds that what takes all workers may take before the others count as lost.
    """

    def __init__(self, strategy: Any, timeout: float) -> None:
        self._strategy = strategy
        self._timeout = timeout
        self._started = 0.0
        self._overdue = False
        self.count = count_workers(strategy)
        self.writes = is_chief(strategy)

    def agree(self, number: int) -> int:
        """Return the chief's number to every worker. None gets it before all have asked."""
        if self.count == 1:
            return number
        mine = tf.constant(number if self.writes else 0, tf.int64)
        values = self._strategy.experimental_distribute_values_from_function(lambda _: mine)
        return int(self._strategy.reduce("SUM", values, axis=None))

    @contextlib.contextmanager
    def together(self, advice: str) -> Iterator[None]:
        """Raise if another worker crashes or falls silent, whatever TensorFlow makes of it.

        Args:
            advice: How to go on, for the message.

        Raises:
            WorkerLostError: If so.
        """
        if self.count == 1:
            yield
            return
        over = threading.Event()
        watch = threading.Thread(target=self._watch, args=(over,), daemon=True)
        watch.start()
        try:
            yield
        except tf.errors.OpError as error:
            if not (self._overdue or _tells_of_a_lost_worker(error)):
                raise
            cause = (
                f"no answer for {self._timeout:g} s (`worker_timeout`)"
                if self._overdue
                else _first_line(error)
            )
            raise WorkerLostError(
                f"Training on {self.count} workers has stopped: another one is lost. {cause}. "
                f"{advice}"
            ) from error
        finally:
            over.set()
            watch.join()

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """Hold while something runs that takes all workers; the others have to keep up."""
        self._started = time.monotonic()
        try:
            yield
        finally:
            self._started = 0.0

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(min(1.0, self._timeout / 4)):
            started = self._started
            if started and time.monotonic() - started > self._timeout:
                self._overdue = True
                abort_collectives(f"no answer from the other workers for {self._timeout:g} s")
                return


def _tells_of_a_lost_worker(error: Exception) -> bool:
    kinds = (
        tf.errors.UnavailableError,
        tf.errors.AbortedError,
        tf.errors.CancelledError,
        tf.errors.DeadlineExceededError,
        tf.errors.FailedPreconditionError,
    )
    return isinstance(error, kinds) or "Collective ops is aborted" in str(error)


def _first_line(error: tf.errors.OpError) -> str:
    """Return what happened, without the stack of the graph that TensorFlow puts before it."""
    said = str(error)
    for mark in ("Collective ops is aborted by:", "Graph execution error:"):
        said = said.rpartition(mark)[2]
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return " ".join(lines[:2]).rstrip(".") if lines else type(error).__name__
