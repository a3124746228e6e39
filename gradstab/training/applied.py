"""Training metrics over the applied steps only.

Keras adds a batch's loss to the mean of the epoch before the optimizer sees its gradient: one batch
that holds NaN, which gradstab skips, makes the loss of the whole epoch NaN, which then ends the run
by early stopping and never counts as the best. So metrics are put back with everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from keras import ops

from gradstab._variables import value_of
from gradstab.diagnosis.origin.bad_steps import BadSteps
from gradstab.optimizers.compiled.branches import one_of
from gradstab.optimizers.model.forward_state import ForwardState
from gradstab.optimizers.step.accumulation import window_size
from gradstab.optimizers.step.gating import assign_if
from gradstab.optimizers.watching.find import stabilized_optimizer
from gradstab.training.penalized import metrics_of_penalties

Step = Callable[[Any], Any]


class SkippedSteps:
    """Tells whether all steps from here on were skipped.

    Args:
        model: A compiled model. With an optimizer that is not gradstab's no step is.
        before: How many steps there were before in the same epoch, and how many were skipped.
    """

    def __init__(self, model: Any, before: Sequence[int] = (0, 0)) -> None:
        optimizer = stabilized_optimizer(model)
        self._telemetry = None if optimizer is None else optimizer.telemetry
        self._first = None if self._telemetry is None else self._telemetry.peek()
        self._before = tuple(before)

    def counts(self) -> list[int]:
        """Return how many steps there were up to now, and how many were skipped."""
        if self._telemetry is None or self._first is None:
            return [0, 0]
        reading = self._telemetry.peek(self._first.cursor)
        steps = reading.cursor - self._first.cursor + self._before[0]
        return [steps, reading.total_skipped - self._first.total_skipped + self._before[1]]

    def verdict(self) -> str | None:
        """Return what happened if all steps were skipped, else `None`."""
        if self._telemetry is None or self._first is None:
            return None
        since = self._first.cursor
        reading = self._telemetry.peek(since)
        steps, skips = self.counts()
        if reading.cursor == since or skips < steps:
            return None
        cause, variable = reading.cause[0], reading.bad_variable[0]
        where = "" if variable is None else f", where the gradient of `{variable}` was not finite"
        return (
            f"all {steps} steps from step {since + 1} on were skipped (first cause: {cause})"
            f"{where}. The weights are as they were before. Look at the data and the loss of these "
            "steps; lower the learning rate or check the initialization if the data is sound"
        )

    def began(self, bad_steps: BadSteps) -> str:
        """Return what began the steps that were skipped, with a space before it, or nothing."""
        if self._telemetry is not None:
            bad_steps.see(self._telemetry.peek())
        return bad_steps.told()


class AppliedMetrics:
    """Puts the metrics of a model back whenever its optimizer skips a step.

    With accumulation the window is the step: metrics go back to where the last applied one ended.

    Args:
        model: A compiled model whose optimizer is built.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        optimizer = stabilized_optimizer(model)
        self._telemetry = None if optimizer is None else optimizer.telemetry
        self._has_windows = optimizer is not None and window_size(optimizer.inner_optimizer) > 1
        self._kept: ForwardState | None = None
        self.reset()

    def reset(self) -> None:
        """Take the metrics as they are for those of applied steps: they were reset."""
        if not self._has_windows:
            return
        variables = self._variables()
        if self._kept is not None and self._kept.holds(variables):
            self._kept.synchronize()
        else:
            self._kept = ForwardState(variables)

    def around(self, step: Step) -> Step:
        """Return a training step after which the metrics are those of applied steps alone."""
        telemetry = self._telemetry
        if telemetry is None:
            return step

        def run(data: Any) -> Any:
            variables = self._variables()
            before = [value_of(variable) for variable in variables]
            steps, skips = telemetry.next_step(), telemetry.total_skipped
            logs = step(data)
            skipped = telemetry.total_skipped > skips
            if self._kept is None:
                assign_if(skipped, variables, before)
            else:
                recorded = telemetry.next_step() > steps
                place = ops.cast(recorded, "int32") + ops.cast(skipped, "int32")
                branches = [_nothing, self._kept.keep, self._kept.restore]
                one_of(place, branches, written=variables)
            return logs

        return run

    def _variables(self) -> list[Any]:
        return [*self._model.metrics_variables, *metrics_of_penalties(self._model)]


def _nothing() -> None:
    """Leave the metrics as they are."""
