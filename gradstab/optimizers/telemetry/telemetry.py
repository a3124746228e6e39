"""Measurements of steps, kept in optimizer variables and read with a cursor."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from keras import ops

from gradstab._replicas import num_replicas, strategy_of
from gradstab._validation import check_int
from gradstab._variables import distinct, value_of
from gradstab.optimizers.compiled.values import gather_row, to_host, usable_here, write_row
from gradstab.optimizers.telemetry.counters import COUNTS
from gradstab.optimizers.telemetry.limits_told import told_of_limits
from gradstab.optimizers.telemetry.reading import CAPACITY, OVERFLOW, ROW, Reading, Recorded
from gradstab.optimizers.telemetry.recording import Outcome, recorded
from gradstab.optimizers.telemetry.sampling import Sampler
from gradstab.transforms.measured import Measured


class Telemetry:
    """Counts, norms and the latest steps of one optimizer, written inside the compiled step.

    Reading changes nothing, so that any number of readers follow the run, each with its own cursor.

    Args:
        causes: Names of the reasons for which steps may be skipped, in the order of the vetoes.
        limits: Names of the rules that may limit steps, in the order of their flags.
        max_consecutive: Gives the number of skips in a row beyond which training has diverged;
            `None` if nothing in the chain has such a budget.
        rate_and_momentum: Gives the learning rate, and the momentum of SGD, for warnings; `None`
            where there is none.

    Attributes:
        samplers: Samplers for the steps that are traced from now on.
        is_used: Whether a step was traced or run since somebody set it to false.
    """

    def __init__(
        self,
        causes: Sequence[str],
        limits: Sequence[str],
        max_consecutive: Callable[[], int | None],
        rate_and_momentum: Callable[[], tuple[float | None, float | None]] = lambda: (None, None),
    ) -> None:
        self._causes = (OVERFLOW, *causes)
        self._limits = tuple(limits)
        self._max_consecutive = max_consecutive
        self._rate_and_momentum = rate_and_momentum
        self._told_until: int | None = 0
        self._paths: tuple[str, ...] = ()
        self._variables: dict[str, Any] = {}
        self._steps: Any = None
        self._warned_at = -1
        self._noted: dict[str, Any] | None = None
        self.samplers: list[Sampler] = []
        self.is_used = False

    def build(self, add_variable: Callable[..., Any], steps: Any, paths: Sequence[str]) -> None:
        """Make the variables.

        Args:
            add_variable: `add_variable` of the optimizer that will own them.
            steps: Variable that counts the steps, skipped ones too.
            paths: Paths of the variables that it trains.
        """
        self._steps = steps
        self._paths = tuple(distinct(paths))
        specs: dict[str, tuple[tuple[int, ...], str]] = {
            "counts": ((len(COUNTS) + len(self._causes) + len(self._limits),), "int"),
            "recent": ((CAPACITY, len(ROW)), "float32"),
            "norms": ((len(self._paths),), "float32"),
        }
        self._variables = {
            name: add_variable(
                shape=shape,
                dtype=dtype,
                initializer="zeros",
                aggregation="none",  # Every replica writes its own copy, and all write the same.
                name=f"telemetry_{name}",
            )
            for name, (shape, dtype) in specs.items()
        }
        for sampler in self.samplers:
            self.prepare(sampler)

    def prepare(self, sampler: Sampler) -> None:
        """Make a sampler's variables, as soon as it is known how many variables are trained."""
        if self._variables:
            sampler.build(len(self._paths), strategy_of(self._variables["counts"]))

    @property
    def variables(self) -> list[Any]:
        """All variables that steps are recorded in, those of samplers too."""
        own = [self._steps, *self._variables.values()] if self._variables else []
        return own + [each for sampler in self.samplers for each in sampler.variables]

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of the variables, in the order of `Reading.norms`; empty before building."""
        return self._paths

    def next_step(self) -> Any:
        """Return the number of the step that is not recorded yet, an integer scalar tensor."""
        return value_of(self._steps) + 1

    def sample(self, every_n_steps: int = 50, *, bins: int = 0) -> None:
        """Take a detailed sample of every n-th step from now on; `read` returns the samples.

        For loops of your own: call it before the first step, since it affects only steps traced
        afterwards. `GradientMonitor` calls it for the run that it watches.

        Args:
            every_n_steps: Steps between two samples; the first step is sampled too.
            bins: Bins of a histogram of each gradient; 0 for none.

        Raises:
            TypeError: If one is no integer.
            ValueError: If it is below 1, or `bins` below 0.
        """
        sampler = Sampler(
            check_int("every_n_steps", every_n_steps), bins=check_int("bins", bins, minimum=0)
        )
        if self._variables:
            sampler.begin(int(self._steps))
        self.prepare(sampler)
        self.samplers = [sampler]

    @contextlib.contextmanager
    def sampling(self, sampler: Sampler) -> Iterator[None]:
        """Have a sampler look closer at the steps that are traced, or run eagerly, in here.

        Args:
            sampler: It is told by the step which of them are due.
        """
        self.prepare(sampler)
        self.samplers = [*self.samplers, sampler]
        try:
            yield
        finally:
            self.samplers = [each for each in self.samplers if each is not sampler]

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Have `latest`, in this block, return what was recorded in it without reading it again."""
        self._noted = {} if num_replicas() == 1 else None
        try:
            yield
        finally:
            self._noted = None

    def latest(self) -> dict[str, Any]:
        """Return what the last recorded step was like, as tensors of the compiled step."""
        row: dict[str, Any] = {n: usable_here(value) for n, value in (self._noted or {}).items()}
        # What was recorded in a branch of a condition can't be used outside of it.
        if not row or any(value is None for value in row.values()):
            recent = self._variables["recent"]
            values = gather_row(recent, (value_of(self._steps) - 1) % CAPACITY)
            row = dict(zip(ROW, ops.unstack(values), strict=True))
        return {
            "grad_norm_max": row["grad_norm"],
            "grad_norm": row["grad_norm"],
            "clipped": row["clipped"],
            "limited": ops.cast(row["limited"] > 0, "float32"),
            "skipped": ops.cast(row["cause"] > 0, "float32"),
        }

    @property
    def consecutive_skips(self) -> Any:
        """Steps skipped in a row up to now, an integer scalar tensor."""
        return value_of(self._variables["counts"])[COUNTS.index("consecutive_skips")]

    @property
    def norms_are_finite(self) -> Any:
        """Whether all gradients of the last step were finite, a boolean scalar tensor."""
        return ops.all(ops.isfinite(value_of(self._variables["norms"])))

    @property
    def total_skipped(self) -> Any:
        """Steps skipped up to now, an integer scalar tensor."""
        return value_of(self._variables["counts"])[COUNTS.index("skipped")]

    def record(
        self,
        incoming: Measured,
        outgoing: Measured,
        loss: Any | None,
        vetoes: Sequence[Any],
        limited: Sequence[Any] = (),
        overflow: Any | None = None,
        at_floor: Any | None = None,
    ) -> None:
        """Write one step, inside the compiled step, whether it was applied or skipped.

        `Outcome` explains the arguments.
        """
        self.is_used = True
        counts = self._variables["counts"]
        step = ops.cast(self._steps, counts.dtype) + 1
        outcome = Outcome(incoming, outgoing, loss, vetoes, limited, overflow, at_floor)
        new, row = recorded(value_of(counts), step, outcome)
        self._steps.assign_add(1)
        counts.assign(new)
        write_row(self._variables["recent"], (step - 1) % CAPACITY, row)
        self._variables["norms"].assign(incoming.norms)
        if self._noted is not None:
            self._noted |= dict(zip(ROW, ops.unstack(row), strict=True))

    def read(self, since: int | None = None) -> Reading:
        """Return the steps since a cursor, in one transfer from the device.

        If training has diverged, it warns once per series of skips, so that a run without
        gradstab's callbacks reports it too.

        Args:
            since: `cursor` of an earlier reading, or `None` for all that is kept.

        Raises:
            ValueError: If `since` is not between 0 and the number of steps so far.

        Example:
        ```python
        reading = optimizer.telemetry.read()
        later = optimizer.telemetry.read(since=reading.cursor)
        ```
        """
        reading = self.peek(since)
        if reading.divergence is not None and self._warned_at != reading.divergence.step:
            self._warned_at = reading.divergence.step
            warnings.warn(f"Training has diverged. {reading.divergence}", stacklevel=2)
        self.warn_of_limits()
        return reading

    def warn_of_limits(self) -> None:
        """Warn once if more than half of the steps since the last call were limited or skipped.

        Call it at the end of an epoch; gradstab's callbacks, `training.train` and `read` do so.
        """
        if self._told_until is None or not self._variables:
            return
        done = int(to_host([self._steps])[0])
        reading = self.peek(min(self._told_until, done))
        self._told_until = reading.cursor
        told = told_of_limits(reading, *self._rate_and_momentum())
        if told is not None:
            self._told_until = None
            warnings.warn(told, stacklevel=2)

    def peek(self, since: int | None = None, sampler: Sampler | None = None) -> Reading:
        """Return what `read` returns, without a warning, for callers that act on it themselves.

        Args:
            since: As in `read`.
            sampler: The sampler whose samples to include; by default that of `sample`.
        """
        if sampler is None and self.samplers:
            sampler = self.samplers[0]
        if sampler is not None and not sampler.built:
            sampler = None
        recorded, samples = self._fetch(sampler)
        return recorded.reading(
            since,
            self._max_consecutive(),
            None if sampler is None else sampler.unpack(samples, since or 0),
        )

    def acknowledge(self) -> None:
        """Forget a divergence after its cause was fixed: counting of skips in a row starts anew."""
        if not self._variables:
            return
        counts = np.array(self._variables["counts"].numpy())
        for name in ("consecutive_skips", "longest_skips", "applied_nonfinite"):
            counts[COUNTS.index(name)] = 0
        self._variables["counts"].assign(counts)

    def _fetch(self, sampler: Sampler | None) -> tuple[Recorded, Sequence[np.ndarray[Any, Any]]]:
        """Bring what is recorded, and a sampler's samples, to the host, all at once."""
        if not self._variables:
            return Recorded.nothing(self._paths, self._causes, self._limits), ()
        own = [self._variables[name] for name in ("counts", "recent", "norms")]
        waiting = [] if sampler is None else sampler.waiting()
        steps, counts, recent, norms, *samples = to_host([self._steps, *own, *waiting])
        recorded = Recorded(
            self._paths, self._causes, self._limits, int(steps), counts.tolist(), recent, norms
        )
        return recorded, samples
