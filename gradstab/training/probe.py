"""Which form of the loop a model trains fastest in, found by timing it.

XLA makes one model twice as fast and the next one half, and nothing tells which beforehand. So a
few steps are timed in each form, on real batches, and everything that they changed is put back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gradstab.training.feed import Feed
from gradstab.training.strategy import StepLoop

# A form has to be faster than the plain graph by more than the timing's noise.
_LEAST_GAIN = 1.05
# Compiling with XLA took 4 to 8 times as long as tracing and running the plain graph did once.
_XLA_COST = 8.0
# What trying XLA may cost, as a share of the time that the run is expected to take without it.
_MOST_SPENT = 0.1
_SECONDS_PER_TIMING = 0.05
_NUM_ROUNDS = 6


@dataclasses.dataclass(frozen=True)
class Choice:
    """The form of the loop, and why it was taken.

    Attributes:
        form: One of `gradstab.training.strategy.FORMS`.
        reason: In words.
        milliseconds_per_step: What was timed, by form.
        seconds: What the probe took, beyond tracing the plain graph.
    """

    form: str
    reason: str
    milliseconds_per_step: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0

    def __str__(self) -> str:
        times = ", ".join(f"{form} {ms:.3g}" for form, ms in self.milliseconds_per_step.items())
        timed = f" ({times} ms per step; finding out took {self.seconds:.1f} s)" if times else ""
        return f"form of the loop: {self.form}, {self.reason}{timed}"

    def again(self) -> Choice:
        """Return the same choice for a run that did not have to time anything."""
        return Choice(self.form, "as when this model was trained before")


def choose_form(
    loop_in: Callable[[str], StepLoop],
    feed: Feed,
    *,
    num_steps: float,
    over_arrays: bool,
) -> Choice:
    """Time the forms of the loop and return the fastest; leave every variable as it was.

    Args:
        loop_in: Gives the loop in a form.
        feed: The training data; none of it is used up.
        num_steps: How many steps are to come: XLA is not compiled for a run too short to gain.
        over_arrays: Whether the data are arrays, which the form `"xla_loop"` needs.
    """
    start = time.perf_counter()
    batches, most = feed.rehearsal()
    plain = loop_in("graph")
    batches.trace(plain)
    ready = time.perf_counter()  # The plain graph has to be traced in any case.
    seconds_to_trace = ready - start
    with _put_back(plain.variables()):
        timings = {"graph": _Timing(plain, batches, most)}
        cost_of_xla = _XLA_COST * (seconds_to_trace + timings["graph"].seconds_to_start)
        end = ready + _MOST_SPENT * num_steps * timings["graph"].seconds_per_step
        reason = "the fastest"
        for form in ("xla_step", "xla_loop") if over_arrays else ("xla_step",):
            begun = time.perf_counter()
            cost_of_rounds = _NUM_ROUNDS * _SECONDS_PER_TIMING * (len(timings) + 1)
            if begun + cost_of_xla + cost_of_rounds > end:
                reason = "the run is too short to gain from XLA"
                break
            try:
                timings[form] = _Timing(loop_in(form), batches, most)
            except Exception as error:
                # XLA refuses some operations, in as many ways as there are; the graph runs them.
                reason = f"since XLA can't compile the step ({type(error).__name__})"
            cost_of_xla = max(cost_of_xla, time.perf_counter() - begun)
        for _ in range(_NUM_ROUNDS if len(timings) > 1 else 0):
            for timing in timings.values():
                timing.repeat()
    milliseconds = {form: 1e3 * timing.seconds_per_step for form, timing in timings.items()}
    fastest = min(milliseconds, key=lambda form: milliseconds[form])
    if milliseconds["graph"] < _LEAST_GAIN * milliseconds[fastest]:
        fastest = "graph"
    return Choice(
        fastest,
        reason if fastest == "graph" else "the fastest",
        {form: round(ms, 4) for form, ms in milliseconds.items()},
        round(time.perf_counter() - ready, 2),
    )


class _Timing:
    """Steps of one loop, timed; the shortest time counts, since all noise adds to it."""

    def __init__(self, loop: StepLoop, batches: Any, most: int) -> None:
        self._loop = loop
        self._batches = batches
        self._count = 1
        self.seconds_per_step = self.seconds_to_start = self._seconds()
        self.seconds_per_step = self._seconds()
        self._count = int(np.clip(_SECONDS_PER_TIMING / self.seconds_per_step, 1, most))

    def repeat(self) -> None:
        self.seconds_per_step = min(self.seconds_per_step, self._seconds() / self._count)

    def _seconds(self) -> float:
        start = time.perf_counter()
        self._batches.run(self._loop, self._count)
        return time.perf_counter() - start


@contextlib.contextmanager
def _put_back(variables: list[Any]) -> Iterator[None]:
    saved = [variable.numpy().copy() for variable in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, saved, strict=True):
            variable.assign(value)
