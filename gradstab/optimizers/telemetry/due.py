"""Steps that several samplers look at: which of them are due, and how such a step is run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from keras import ops

from gradstab.optimizers.telemetry.sampling import Sampler
from gradstab.transforms.measured import Measured


def may_sample(samplers: Sequence[Sampler]) -> bool:
    """Whether there is anyone who may have a step looked at."""
    return bool(samplers)


def is_due(samplers: Sequence[Sampler], step: Any) -> Any:
    """Return whether any of the samplers has a step looked at, a boolean scalar tensor."""
    due = samplers[0].is_due(step)
    for sampler in samplers[1:]:
        due = ops.logical_or(due, sampler.is_due(step))
    return due


def run_sampled(
    samplers: Sequence[Sampler],
    step: Any,
    run: Callable[[], None],
    variables: Sequence[Any],
    rows: Sequence[Any],
    incoming: Measured,
    outgoing: Measured,
) -> None:
    """Run a step under the eyes of several samplers; the arguments are those of `Sampler.run`."""
    for sampler in samplers:
        run = functools.partial(sampler.run, step, run, variables, rows, incoming, outgoing)
    run()
