"""One step of a `StabilizedOptimizer`, from the gradients that came in to what is recorded.

unscale → sum over the replicas → accumulate → sum duplicate rows → measure → gradient transforms →
verdict → apply the inner optimizer once, or leave all as it was → update transforms → averages and
constraints → record.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from keras import ops

from gradstab._variables import is_overwritten, value_of
from gradstab.functional.finite import any_of
from gradstab.optimizers.compiled.branches import either
from gradstab.optimizers.compiled.sparse import map_values, split_sparse
from gradstab.optimizers.model.plan import Plan
from gradstab.optimizers.step import reducing
from gradstab.optimizers.step.accumulation import Accumulators
from gradstab.optimizers.step.applying import Applier, Judged
from gradstab.optimizers.step.chain import Chain
from gradstab.optimizers.step.inner import Afterwards
from gradstab.optimizers.step.learning_rate import current_rate, momentum
from gradstab.optimizers.step.loss_scale import LossScale
from gradstab.optimizers.telemetry.telemetry import Telemetry
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
        self._applier = Applier(inner_optimizer, chain, telemetry, plan)

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
            loss_scale.update(overflow, loss)

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

        either(accumulators.ends_window(), finish, go_on)

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
            momentum=momentum(inner),
        )
        on_rate = chain.limit_rate(context)
        if on_rate.values is not None:
            context = dataclasses.replace(context, learning_rate=on_rate.values)
        on_gradients = chain.run("gradient", incoming, context)
        outgoing = on_gradients.values
        context = dataclasses.replace(context, outgoing=outgoing)
        overflow = _overflow(incoming, loss_scale)
        vetoes = chain.vetoes(context)
        # Measured here, not inside a branch, since the record needs them too.
        _ = incoming.global_norm, outgoing.global_norm
        refused = [*vetoes, *([] if overflow is None else [overflow])]
        accept = ops.logical_not(any_of(refused)) if refused else None
        judged = Judged(
            gradients=gradients,
            variables=variables,
            places=places,
            rows=rows,
            context=context,
            outgoing=outgoing,
            new_states=on_rate.joined(on_gradients),
            limited_rate=on_rate.values,
            accept=accept,
        )
        self._applier.run(judged, accumulators)
        self._telemetry.record(
            incoming,
            outgoing,
            loss,
            vetoes,
            [*on_rate.limited, *on_gradients.limited],
            **({} if loss_scale is None else loss_scale.to_record(overflow, loss, vetoes)),
        )
        return overflow

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


def _sum_over_replicas(
    gradients: Sequence[Any], variables: Sequence[Any], loss: Any | None
) -> tuple[list[Any], Any | None]:
    """Sum what is a gradient; the next value of a variable stays as it is, as in Keras."""
    summed, loss = reducing.sum_gradients(
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
