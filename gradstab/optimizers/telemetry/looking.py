"""A step that samplers look at, if it is one of those that are due."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from keras import ops

from gradstab._variables import resource, value_of
from gradstab.functional.statistics import statistics_of_step
from gradstab.keras_hooks.conditions import is_compiled_by_xla
from gradstab.optimizers.compiled.branches import either, values_if
from gradstab.transforms.measured import Measured

if TYPE_CHECKING:
    from gradstab.optimizers.telemetry.telemetry import Telemetry


@contextlib.contextmanager
def looked_at(
    telemetry: Telemetry,
    variables: Sequence[Any],
    rows: Sequence[Any],
    incoming: Measured,
    outgoing: Measured,
) -> Iterator[None]:
    """Have the samplers look at the step that is taken in this block, if one of them is due.

    The step itself is traced as it would be without them: the variables are read before it, and
    compared with what they are after it.

    Args:
        telemetry: Has the samplers.
        variables: All variables that are trained.
        rows: Row indices where a gradient is sparse, else `None`.
        incoming: Gradients before the transforms.
        outgoing: Gradients after them.
    """
    samplers = telemetry.samplers
    if not samplers:
        yield
        return
    step = telemetry.next_step()
    due = functools.reduce(ops.logical_or, (sampler.is_due(step) for sampler in samplers))
    before = _read_if(due, variables)
    probes = [sampler.probe_before(due, variables) for sampler in samplers]
    yield

    def take() -> None:
        found = statistics_of_step(incoming.values, before, variables, rows)
        for sampler, probe in zip(samplers, probes, strict=True):
            sampler.take(step, variables, found, incoming, outgoing, before, probe)

    either(due, take, lambda: None, [*variables, *telemetry.variables])


def _read_if(due: Any, variables: Sequence[Any]) -> list[Any]:
    """Return the values of variables if they are needed.

    A value that somebody holds has the next write go to new memory. XLA always writes there.
    """

    def read() -> list[Any]:
        return [value_of(variable) for variable in variables]

    if is_compiled_by_xla():
        return read()
    return values_if(due, read, [resource(variable) for variable in variables], variables)
