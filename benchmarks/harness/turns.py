"""Contenders that take turns in one process, one epoch each, and ratios of their times."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from harness.intervals import median_interval


class Turnstile(keras.callbacks.Callback):
    """Lets its run through one epoch at a time, and times each from one gate to the next."""

    def __init__(self) -> None:
        super().__init__()
        self._go = threading.Semaphore(0)
        self._arrived = threading.Semaphore(0)
        self._started: float | None = None
        self._seconds = 0.0
        self._closing = False
        self.failure: BaseException | None = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Stop the clock of the last epoch, and wait for the next one's turn."""
        if self._started is not None:
            self._seconds = time.perf_counter() - self._started
        self._arrived.release()
        self._go.acquire()
        if self._closing:
            self.model.stop_training = True
        self._started = time.perf_counter()

    def epoch(self) -> float:
        """Let one epoch pass and return its seconds."""
        self._go.release()
        self._wait()
        return self._seconds

    def close(self) -> None:
        """Let the run end after one more epoch, and wait for its end."""
        self._closing = True
        self._go.release()
        self.thread.join()

    def run(self, train: Callable[[Turnstile], Any]) -> None:
        """Run a call that trains, in a thread of its own, up to its first epoch."""

        def work() -> None:
            try:
                train(self)
                if not self._closing:
                    raise RuntimeError("training ended by itself")
            except BaseException as error:
                self.failure = error
            self._arrived.release()

        self.thread = threading.Thread(target=work, daemon=True)
        self.thread.start()
        self._wait()

    def _wait(self) -> None:
        self._arrived.acquire()
        if self.failure is not None:
            raise RuntimeError("a contender failed") from self.failure


def take_turns(
    runs: Mapping[str, Callable[[Turnstile], Any]],
    num_rounds: int,
    generator: np.random.Generator,
    warm_up_epochs: int,
    say: Callable[[str], Any] = lambda message: None,
    closer: Sequence[str] = (),
    closer_seconds: float = 0.0,
) -> dict[str, list[float]]:
    """Return the seconds of each contender's epochs, one epoch each a round, in random order.

    Where a verdict rests on two of many, those can go on for rounds of their own, which stand
    behind the others in their lists: so the same time tells more of these two.

    Args:
        runs: Calls that train "for ever" with the callback that they are given, each in one `fit`.
        num_rounds: Rounds to measure.
        generator: Draws the orders.
        warm_up_epochs: First epochs of each, which compile and are not counted.
        say: Gets a line about each contender's first epoch and about every tenth round.
        closer: Those that go on.
        closer_seconds: For how long, at least.
    """
    turnstiles = {name: Turnstile() for name in runs}
    for name, turnstile in turnstiles.items():
        turnstile.run(runs[name])
    # Once all are built: building with a seed empties TensorFlow's cache of kernels for everybody.
    for place in range(warm_up_epochs):
        for name, turnstile in turnstiles.items():
            started = time.perf_counter()
            turnstile.epoch()
            if place == 0:
                say(f"the first epoch of {name} took {time.perf_counter() - started:.1f} s")
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for place in range(num_rounds):
        for name in generator.permutation(list(runs)):
            seconds[name].append(turnstiles[name].epoch())
        if (place + 1) % 10 == 0:
            say(f"round {place + 1} of {num_rounds}")
    started = time.perf_counter()
    while closer and time.perf_counter() - started < closer_seconds:
        for name in generator.permutation(list(closer)):
            seconds[name].append(turnstiles[name].epoch())
    for turnstile in turnstiles.values():
        turnstile.close()
    return seconds


def ratio(above: list[float], below: list[float], generator: np.random.Generator) -> list[float]:
    """Return the median over rounds of `above / below`, and its 95 % interval (bootstrap).

    Where one has more rounds than the other, those that both have count.
    """
    common = min(len(above), len(below))
    pairs = np.array(above[:common]) / np.array(below[:common])
    low, middle, high = median_interval(pairs, generator)
    return [middle, low, high]
