"""One step of a `StabilizedOptimizer`, from the gradients that came in to what is recorded.

unscale → sum over the replicas → accumulate → sum duplicate rows → measure → gradient transforms →
verdict → apply the inner optimizer once, or leave all as it was → update transforms → averages and
constraints → record.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from keras import ops

from gradstab.functional._backend import value_of
from gradstab.optimizers import distribution, reducing
from gradstab.optimizers.accumulation import Accumulators
from gradstab.optimizers.chain import Chain, NewStates
from gradstab.optimizers.gating import can_gate, gated
from gradstab.optimizers.inner import (
    Afterwards,
    bound_updates,
    is_overwritten,
    only_updating,
    parts,
    reading_once,
    resource,
    with_rate,
)
from gradstab.optimizers.learning_rate import current_rate, is_scale_invariant, moves_by_rate
from gradstab.optimizers.loss_scaling import LossScale
from gradstab.optimizers.plan import Plan
from gradstab.optimizers.sampling import is_due, may_sample, run_sampled
from gradstab.optimizers.sparse import join_sparse, map_values, split_sparse
from gradstab.optimizers.telemetry import Telemetry, any_of
from gradstab.transforms.base import Context
from gradstab.transforms.measured import Measured


class Step:
    """Takes steps: one instance for one optimizer.

    Args:
        inner_optimizer: The optimizer that changes the weights.
        chain: The transforms.
        telemetry: Where steps are recorded.
        plan: What is known of the model.
    """

    def __init__(
        self, inner_optimizer: Any, chain: Chain, telemetry: Telemetry, plan: Plan
    ) -> None:
        self._inner = inner_optimizer
        self._chain = chain
        self._telemetry = telemetry
        self._plan = plan

    def take(
        self, gradients: Sequence[Any], variables: Sequence[Any], loss_scale: LossScale | None
    ) -> None:
        """Take one step, or one micro-batch of one.

        Args:
            gradients: This replica's share of the gradients, one per entry of `variables`.
            variables: Trainable variables, all known to the plan.
            loss_scale: The dynamic loss scale that the gradients carry, if they do.
        """
        loss = self._plan.take_loss()
        if loss is not None:
            loss = ops.cast(loss, "float32")
        unscaled = self._unscale(gradients, variables, loss_scale)
        gradients, loss = _sum_over_replicas(unscaled, variables, loss)
        accumulators = Accumulators(self._inner)
        if accumulators.size == 1:
            overflow = self._whole(gradients, variables, loss, loss_scale, None)
        else:
            overflow = _overflow(Measured(split_sparse(gradients)[0]), loss_scale)
            self._micro_batch(gradients, variables, loss, loss_scale, accumulators)
        if loss_scale is not None:
            loss_scale.update(overflow)

    def _micro_batch(
        self,
        gradients: Sequence[Any],
        variables: Sequence[Any],
        loss: Any | None,
        loss_scale: LossScale | None,
        accumulators: Accumulators,
    ) -> None:
        totals = accumulators.totals(gradients, variables)
        afterwards = Afterwards(self._inner, self._plan.variables)

        def finish() -> None:
            means = accumulators.means(totals, variables)
            self._whole(means, variables, loss, loss_scale, accumulators)

        def go_on() -> None:
            accumulators.keep(totals, variables)
            accumulators.count()
            afterwards.run(gradients, variables)

        distribution.either(accumulators.ends_window(), finish, go_on)

    def _whole(
        self,
        gradients: Sequence[Any],
        variables: Sequence[Any],
        loss: Any | None,
        loss_scale: LossScale | None,
        accumulators: Accumulators | None,
    ) -> Any | None:
        plan, chain, inner = self._plan, self._chain, self._inner
        size = len(plan.variables)
        places = [plan.position(variable) for variable in variables]
        tensors, rows = split_sparse(
            [None if is_overwritten(v) else g for g, v in zip(gradients, variables, strict=True)]
        )
        incoming = Measured(_placed(tensors, places, size))
        context = Context(
            variables=plan.variables,
            roles=plan.roles(),
            rows=_placed(rows, places, size),
            step=value_of(inner.iterations),
            learning_rate=current_rate(inner),
            loss=loss,
            consecutive_skips=self._telemetry.consecutive_skips,
            incoming=incoming,
            is_scale_invariant=is_scale_invariant(inner),
            moves_by_rate=moves_by_rate(inner),
        )
        rate, limited_rate = context.learning_rate, chain.limit_rate(context)
        if limited_rate is not None:
            context.learning_rate = limited_rate
        outgoing, new_states = chain.run("gradient", incoming, context)
        if limited_rate is not None:
            outgoing = outgoing.counted_as_clipped(limited_rate < rate)
        context.outgoing = outgoing
        overflow = _overflow(incoming, loss_scale)
        vetoes = chain.vetoes(context)
        # Measured here, not inside a branch, since the record needs them too.
        _ = incoming.global_norm, outgoing.global_norm

        afterwards = Afterwards(inner, plan.variables)
        # Keras overwrites weights by their averages inside a condition that no strategy can hold.
        does_afterwards = chain.changes_updates or afterwards.overwrites or accumulators is not None
        reduces_once = reducing.reduces_once(parts(inner))

        def applying(form: Callable[[], list[Any]]) -> Callable[[], None]:
            def apply() -> None:
                values = form()
                transformed = join_sparse([values[place] for place in places], rows, gradients)
                final = [
                    gradient if is_overwritten(variable) else value
                    for gradient, value, variable in zip(
                        gradients, transformed, variables, strict=True
                    )
                ]
                if distribution.num_replicas() > 1 and not reduces_once:
                    final = reducing.as_shares(final)
                before = [ops.copy(v) for v in plan.variables] if chain.changes_updates else []
                _apply_inner(inner, final, variables)
                if chain.changes_updates:
                    bound_updates(chain, before, context)
                if does_afterwards:
                    afterwards.run(gradients, variables)
                chain.store(new_states)
                if accumulators is not None:
                    accumulators.reset()
                plan.forward_state.keep()

            return apply

        def skip() -> None:
            if accumulators is not None:
                accumulators.reset()
                accumulators.count()
                afterwards.run([None] * len(variables), variables)
            plan.forward_state.restore()

        refused = [*vetoes, *([] if overflow is None else [overflow])]
        accept = ops.logical_not(any_of(refused)) if refused else None
        record = functools.partial(
            self._telemetry.record,
            incoming,
            outgoing,
            loss,
            vetoes,
            overflow=overflow,
            at_floor=None if loss_scale is None else loss_scale.at_floor,
        )
        if (
            accept is not None
            and not does_afterwards
            and not any(sampler.needs_before for sampler in self._telemetry.samplers)
            and can_gate(
                inner, variables, gradients, may_sample=may_sample(self._telemetry.samplers)
            )
        ):
            values = [outgoing.values[place] for place in places]
            self._apply_gated(
                accept, values, variables, new_states, context, outgoing, limited_rate
            )
            record()
            return overflow
        is_scaled, forms = outgoing.forms()
        branches = [applying(form) for form in forms]
        place = None if is_scaled is None else ops.cast(is_scaled, "int32")
        if accept is not None:
            branches.insert(0, skip)
            place = ops.where(accept, 1 if place is None else place + 1, 0)

        telemetry = self._telemetry
        written = [*plan.variables, *inner.variables, *telemetry.variables, *chain.variables]
        written += plan.forward_state.variables
        if telemetry.samplers:
            step = telemetry.next_step()

            def run() -> None:
                distribution.either(accept, applying(forms[-1]), skip, written)

            def sampled() -> None:
                run_sampled(
                    telemetry.samplers, step, run, plan.variables, context.rows, incoming, outgoing
                )

            due = is_due(telemetry.samplers, step)
            if due is None:
                place, branches = None, [sampled]
            else:
                place = ops.where(due, len(branches), 0 if place is None else place)
                branches.append(sampled)
        around = _only_applying(inner, plan.variables, does_afterwards, reduces_once, limited_rate)
        distribution.one_of(place, branches, around, written)
        record()
        return overflow

    def _apply_gated(
        self,
        accept: Any,
        gradients: Sequence[Any],
        variables: Sequence[Any],
        new_states: NewStates,
        context: Context,
        outgoing: Measured,
        limited_rate: Any | None,
    ) -> None:
        """Apply a step, or not, by assignments that depend on the verdict (`gating`)."""
        plan, telemetry = self._plan, self._telemetry
        updates: dict[int, Any] | None = {} if telemetry.samplers else None
        sometimes = may_sample(telemetry.samplers)
        with (
            _only_applying(self._inner, plan.variables, False, False, limited_rate),
            reading_once(self._inner),
            gated(self._inner, accept, updates, may_sample=sometimes) as if_accepted,
        ):
            self._inner.apply(gradients, variables)
        self._chain.store(new_states, accept)
        if plan.forward_state.variables:
            written = plan.forward_state.variables
            distribution.either(
                accept, plan.forward_state.keep, plan.forward_state.restore, written
            )
        if updates is None:
            return
        step = telemetry.next_step()
        changes = [updates.get(id(resource(variable))) for variable in plan.variables]

        def sample() -> None:
            for sampler in telemetry.samplers:
                sampler.take(
                    step, plan.variables, changes,
                    context.rows, context.incoming, outgoing, if_applied=if_accepted,
                )  # fmt: skip

        distribution.either(
            is_due(telemetry.samplers, step),
            sample,
            lambda: None,
            [*plan.variables, *telemetry.variables],
        )

    def _unscale(
        self, gradients: Sequence[Any], variables: Sequence[Any], loss_scale: LossScale | None
    ) -> list[Any]:
        factor = self._inner.loss_scale_factor if loss_scale is None else loss_scale.value
        return [
            gradient
            if gradient is None or factor is None or is_overwritten(variable)
            else map_values(lambda values: ops.divide(values, factor), gradient)
            for gradient, variable in zip(gradients, variables, strict=True)
        ]


def _apply_inner(optimizer: Any, gradients: Sequence[Any], variables: Sequence[Any]) -> None:
    # Replicas run in threads that share the optimizer, and each reads copies of its own.
    alone = distribution.num_replicas() == 1
    with reading_once(optimizer) if alone else contextlib.nullcontext():
        optimizer.apply(gradients, variables)


@contextlib.contextmanager
def _only_applying(
    optimizer: Any,
    variables: Sequence[Any],
    afterwards: bool,
    reduces_once: bool,
    limited_rate: Any | None,
) -> Iterator[None]:
    """Switch off in the inner optimizer what is done here, and have it take a limited rate."""
    with (
        only_updating(optimizer, variables, afterwards=afterwards),
        contextlib.ExitStack() as stack,
    ):
        if limited_rate is not None:
            stack.enter_context(with_rate(optimizer, limited_rate))
        if reduces_once and distribution.num_replicas() > 1:
            stack.enter_context(reducing.without_reduction(parts(optimizer)))
        yield


def _sum_over_replicas(
    gradients: Sequence[Any], variables: Sequence[Any], loss: Any | None
) -> tuple[list[Any], Any | None]:
    """Sum what is a gradient; the next value of a variable stays as it is, as in Keras."""
    summed, loss = reducing.sum_over_replicas(
        [None if is_overwritten(v) else g for g, v in zip(gradients, variables, strict=True)],
        [tuple(variable.shape) for variable in variables],
        loss,
    )
    return [
        gradient if is_overwritten(variable) else total
        for gradient, total, variable in zip(gradients, summed, variables, strict=True)
    ], loss


def _overflow(gradients: Measured, loss_scale: LossScale | None) -> Any | None:
    """Return whether the loss scale was too large for these gradients; `None` without a scale."""
    if loss_scale is None:
        return None
    return ops.logical_not(ops.all(ops.isfinite(gradients.norms)))


def _placed(values: Sequence[Any], places: Sequence[int], size: int) -> list[Any]:
    """Return a list of `size` entries with each value at its place, and `None` elsewhere."""
    result: list[Any] = [None] * size
    for value, place in zip(values, places, strict=True):
        result[place] = value
    return result
