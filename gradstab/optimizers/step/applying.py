"""Applies an accepted step, or leaves everything as it was.

Two ways lead there. Where nothing but Keras' own assignments is to be done, each of them depends on
the verdict (`gating`). Everywhere else the step is one branch of a condition and leaving it is
another, for all replicas alike.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from keras import ops

from gradstab._nesting import parts
from gradstab._replicas import num_replicas
from gradstab._variables import is_overwritten
from gradstab.keras_hooks.conditions import is_compiled_by_xla
from gradstab.keras_hooks.one_step import (
    only_updating,
    reading_once,
    reduces_once,
    with_rate,
    without_reduction,
)
from gradstab.optimizers.compiled.branches import either, one_of
from gradstab.optimizers.compiled.sparse import join_sparse
from gradstab.optimizers.model.plan import Plan
from gradstab.optimizers.step import reducing
from gradstab.optimizers.step.accumulation import Accumulators
from gradstab.optimizers.step.chain import Chain, NewStates
from gradstab.optimizers.step.gating import can_gate, gated
from gradstab.optimizers.step.inner import Afterwards, bound_updates, take_step
from gradstab.optimizers.telemetry.looking import looked_at
from gradstab.optimizers.telemetry.telemetry import Telemetry
from gradstab.transforms.base import Context
from gradstab.transforms.measured import Measured


@dataclasses.dataclass(frozen=True)
class Judged:
    """A whole step, decided on but not applied yet.

    Attributes:
        gradients: As they came in, summed over the replicas, one per entry of `variables`.
        variables: The variables of this step, which may be a part of all.
        places: Position of each among all.
        rows: Row indices of each gradient that is sparse, else `None`.
        context: What the transforms could read.
        outgoing: What they made of the gradients, one entry per variable of the model.
        new_states: What they want to keep if the step is applied.
        limited_rate: The rate that they left, a float32 scalar tensor; `None` where they left it
            alone.
        accept: Whether to apply the step, a boolean scalar tensor; `None` where nothing may refuse.
    """

    gradients: Sequence[Any]
    variables: Sequence[Any]
    places: Sequence[int]
    rows: Sequence[Any]
    context: Context
    outgoing: Measured
    new_states: NewStates
    limited_rate: Any | None
    accept: Any | None

    def final(self, values: Sequence[Any]) -> list[Any]:
        """Return gradients for the inner optimizer, given their values, one per variable of all."""
        own = join_sparse([values[place] for place in self.places], self.rows, self.gradients)
        return [
            gradient if is_overwritten(variable) else value
            for gradient, value, variable in zip(self.gradients, own, self.variables, strict=True)
        ]


class Applier:
    """Applies steps: one instance for one optimizer.

    Args:
        inner_optimizer: The optimizer that changes the weights.
        chain: The transforms, those of updates among them.
        telemetry: Whose samplers look at some steps.
        plan: What is known of the model.
    """

    def __init__(
        self, inner_optimizer: Any, chain: Chain, telemetry: Telemetry, plan: Plan
    ) -> None:
        self._inner = inner_optimizer
        self._chain = chain
        self._telemetry = telemetry
        self._plan = plan

    def run(self, step: Judged, accumulators: Accumulators | None) -> None:
        """Apply a step, or leave everything as it was.

        Args:
            step: What was judged.
            accumulators: Those that hold it, where it is the last micro-batch of a window.
        """
        variables, context = self._plan.variables, step.context
        with looked_at(self._telemetry, variables, context.rows, context.incoming, step.outgoing):
            self._run(step, accumulators)

    def _run(self, step: Judged, accumulators: Accumulators | None) -> None:
        afterwards = Afterwards(self._inner, self._plan.variables)
        # Keras overwrites weights by their averages inside a condition that no strategy can hold.
        if self._chain.acts_on("update") or afterwards.overwrites or accumulators is not None:
            self._branch(step, afterwards, accumulators)
        elif self._can_gate(step):
            self._gate(step)
        else:
            self._branch(step, None, None)

    def _can_gate(self, step: Judged) -> bool:
        return step.accept is not None and can_gate(self._inner, step.variables, step.gradients)

    # By assignments that depend on the verdict ----------------------------------------------------

    def _gate(self, step: Judged) -> None:
        plan = self._plan
        with (
            self._only_applying(None, False, step.limited_rate),
            reading_once(self._inner),
            gated(self._inner, step.accept),
        ):
            take_step(
                self._inner, [step.outgoing.values[place] for place in step.places], step.variables
            )
        self._chain.store(step.new_states, step.accept)
        if plan.forward_state.variables:
            written = plan.forward_state.variables
            either(step.accept, plan.forward_state.keep, plan.forward_state.restore, written)

    # In a branch ----------------------------------------------------------------------------------

    def _branch(
        self, step: Judged, afterwards: Afterwards | None, accumulators: Accumulators | None
    ) -> None:
        plan, chain = self._plan, self._chain
        sums_once = reduces_once(parts(self._inner))

        def applying(values: Callable[[], list[Any]]) -> Callable[[], None]:
            def apply() -> None:
                final = step.final(values())
                if num_replicas() > 1 and not sums_once:
                    final = reducing.as_shares(final)
                self._apply(final, step, afterwards, accumulators)

            return apply

        def skip() -> None:
            if accumulators is not None and afterwards is not None:
                accumulators.reset()
                accumulators.count()
                afterwards.run([None] * len(step.variables), step.variables)
            plan.forward_state.restore()

        is_changed, forms = step.outgoing.forms()
        if is_compiled_by_xla():
            # It multiplies within the update's own loop; another branch is compiled for nothing.
            is_changed, forms = None, forms[-1:]
        branches = [applying(form) for form in forms]
        place = None if is_changed is None else ops.cast(is_changed, "int32")
        if step.accept is not None:
            branches.insert(0, skip)
            place = ops.where(step.accept, 1 if place is None else place + 1, 0)

        written = [*plan.variables, *self._inner.variables, *chain.variables]
        written += plan.forward_state.variables
        around = self._only_applying(afterwards, sums_once, step.limited_rate)
        one_of(place, branches, around, written)

    def _apply(
        self,
        gradients: Sequence[Any],
        step: Judged,
        afterwards: Afterwards | None,
        accumulators: Accumulators | None,
    ) -> None:
        plan, chain = self._plan, self._chain
        before = [ops.copy(v) for v in plan.variables] if chain.acts_on("update") else []
        # Replicas run in threads that share the optimizer, and each reads copies of its own.
        alone = num_replicas() == 1
        with reading_once(self._inner) if alone else contextlib.nullcontext():
            take_step(self._inner, gradients, step.variables)
        if chain.acts_on("update"):
            bound_updates(chain, before, step.context)
        if afterwards is not None:
            afterwards.run(step.gradients, step.variables)
        chain.store(step.new_states)
        if accumulators is not None:
            accumulators.reset()
        plan.forward_state.keep()

    @contextlib.contextmanager
    def _only_applying(
        self, afterwards: Afterwards | None, sums_once: bool, limited_rate: Any | None
    ) -> Iterator[None]:
        """Switch off in the inner optimizer what is done here, and have it take a limited rate."""
        variables = self._plan.variables
        with (
            only_updating(self._inner, variables, afterwards=afterwards is not None),
            contextlib.ExitStack() as stack,
        ):
            if limited_rate is not None:
                stack.enter_context(with_rate(self._inner, limited_rate))
            if sums_once and num_replicas() > 1:
                stack.enter_context(without_reduction(parts(self._inner)))
            yield
