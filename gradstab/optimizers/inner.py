"""Lets the inner optimizer apply, and transforms the change that it made.

Keras unscales inside `apply`, averages weights (EMA) and applies constraints at its end. Gradients
have to be unscaled before they are measured, and update transforms act before averages and
constraints. So these three are switched off while the inner optimizer applies, and done here.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
from keras import ops

from gradstab.optimizers.chain import Chain
from gradstab.transforms.base import Context
from gradstab.transforms.measured import Measured


def parts(optimizer: Any) -> list[Any]:
    """Return the optimizers that do the work: those inside a `MultiOptimizer`, or the one given."""
    return list(getattr(optimizer, "optimizers", [optimizer]))


def is_overwritten(variable: Any) -> bool:
    """Whether the "gradient" is the variable's next value, as of Keras' float8 scales."""
    return bool(getattr(variable, "overwrite_with_gradient", False))


def apply_inner(
    optimizer: Any,
    chain: Chain,
    gradients: Sequence[Any],
    variables: Sequence[Any],
    context: Context,
) -> None:
    """Let an optimizer change the weights, then run the update transforms on the change.

    Args:
        optimizer: The inner optimizer, built.
        chain: The transforms.
        gradients: Unscaled gradients, one per entry of `variables`.
        variables: The variables that have gradients to be applied.
        context: What the transforms may read; its variables are all that the optimizer trains.
    """
    if not chain.changes_updates:
        with _deferred(optimizer, variables, until_updated=False):
            optimizer.apply(gradients, variables)
        return
    updated = context.variables
    before = [ops.copy(variable) for variable in updated]
    with _deferred(optimizer, updated, until_updated=True):
        optimizer.apply(gradients, variables)
    change = Measured(
        [
            None if is_overwritten(new) else new - old
            for new, old in zip(updated, before, strict=True)
        ]
    )
    bounded, new_states = chain.run(
        "update", change, dataclasses.replace(context, variables=before)
    )
    for variable, old, made, kept in zip(
        updated, before, change.values, bounded.values, strict=True
    ):
        if made is not None:
            # Where nothing was bounded, adding the change again would round the weight anew.
            same = ops.all(made == kept)
            variable.assign(ops.where(same, variable, old + kept))
    chain.store(new_states)
    _average(optimizer)
    _constrain(
        variable
        for gradient, variable in zip(gradients, variables, strict=True)
        if gradient is not None and not is_overwritten(variable)
    )


@contextlib.contextmanager
def _deferred(optimizer: Any, variables: Sequence[Any], *, until_updated: bool) -> Iterator[None]:
    """Keep Keras from unscaling and, with `until_updated`, from averaging and constraining.

    Args:
        optimizer: The inner optimizer. Its attributes are read while its step is traced, so that
            changing them around the call is enough.
        variables: The variables to be updated.
        until_updated: Whether averages and constraints wait for update transforms.
    """
    with contextlib.ExitStack() as stack:
        for each in {id(part): part for part in (optimizer, *parts(optimizer))}.values():
            stack.enter_context(_replaced(each, "loss_scale_factor", None))
            if until_updated:
                stack.enter_context(_replaced(each, "use_ema", False))
        if until_updated:
            for variable in variables:
                if isinstance(variable, keras.Variable) and variable.constraint is not None:
                    stack.enter_context(_replaced(variable, "constraint", None))
        yield


def _average(optimizer: Any) -> None:
    """Advance the inner optimizer's weight averages, and overwrite the weights when it is due.

    Keras has no public call for it, so the list of averages is read from the private
    `_model_variables_moving_average`. Called after the inner `apply`, which counted the step.

    Raises:
        AttributeError: If this version of Keras keeps its averages elsewhere.
    """
    for part in parts(optimizer):
        if not part.use_ema:
            continue
        step = ops.convert_to_tensor(part.iterations)
        pairs = [
            (variable, mean)
            for variable, mean in zip(
                part._trainable_variables, part._model_variables_moving_average, strict=True
            )
            if mean is not None
        ]
        for variable, mean in pairs:
            momentum = ops.cast(step > 1, mean.dtype) * part.ema_momentum
            mean.assign(momentum * mean + (1 - momentum) * variable)
        frequency = part.ema_overwrite_frequency
        if frequency:
            due = step % frequency == 0
            for variable, mean in pairs:
                variable.assign(ops.where(due, mean, variable))


def _constrain(variables: Iterable[Any]) -> None:
    """Apply the constraints of the variables that have one."""
    for variable in variables:
        if isinstance(variable, keras.Variable) and variable.constraint is not None:
            variable.assign(variable.constraint(variable))


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
