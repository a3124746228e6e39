"""Lets the inner optimizer apply, and transforms the change that it made.

Keras unscales and accumulates inside `apply`, averages weights (EMA) and applies constraints at its
end. Gradients have to be unscaled and accumulated before they are measured, and update transforms
act before averages and constraints. So these are switched off while the inner optimizer applies,
and done here, or before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from gradstab._nesting import parts
from gradstab._variables import is_overwritten, value_of
from gradstab.keras_hooks.optimizer_state import averages, counter
from gradstab.optimizers.step.chain import Chain
from gradstab.transforms.base import Context
from gradstab.transforms.measured import Measured


def take_step(optimizer: Any, gradients: Sequence[Any], variables: Sequence[Any]) -> None:
    """Have the inner optimizer take a step by the method that its class, or a person, overrides.

    `fit` and loops call `apply_gradients`, which in Keras calls `apply`.
    """
    if overrides(optimizer, "apply_gradients"):
        optimizer.apply_gradients(list(zip(gradients, variables, strict=True)))
    else:
        optimizer.apply(gradients, variables)


def overrides(optimizer: Any, method: str) -> bool:
    """Whether an optimizer, or its class, has a method of its own in place of Keras'."""
    of_keras = getattr(keras.optimizers.Optimizer, method)
    return method in vars(optimizer) or getattr(type(optimizer), method) is not of_keras


class Afterwards:
    """What Keras does at the end of `apply`: average the weights (EMA), and constrain them.

    Read from the optimizer and the variables when it is made, before `only_updating` switches it
    off.

    Args:
        optimizer: The inner optimizer, built.
        variables: All variables that it trains.
    """

    def __init__(self, optimizer: Any, variables: Sequence[Any]) -> None:
        self._averaging = [
            (part, part.gradient_accumulation_steps or 1)
            for part in parts(optimizer)
            if part.use_ema and part.built
        ]
        self._constraints = {
            id(variable): variable.constraint
            for variable in variables
            if isinstance(variable, keras.Variable) and variable.constraint is not None
        }

    @property
    def overwrites(self) -> bool:
        """Whether weights are overwritten by their averages during training."""
        return any(part.ema_overwrite_frequency for part, _ in self._averaging)

    def run(self, gradients: Sequence[Any], variables: Sequence[Any]) -> None:
        """Average and constrain, once the step, or the micro-batch, is counted."""
        for part, window in self._averaging:
            _average(part, window)
        for gradient, variable in zip(gradients, variables, strict=True):
            constraint = self._constraints.get(id(variable))
            if gradient is not None and constraint is not None and not is_overwritten(variable):
                variable.assign(constraint(variable))


def bound_updates(chain: Chain, before: Sequence[Any], context: Context) -> None:
    """Run the update transforms on what has changed since `before`, and write what they keep.

    Args:
        chain: The transforms.
        before: Copies of the variables as they were before the inner optimizer's update.
        context: What the transforms may read; its variables are all that the optimizer trains.
    """
    updated = context.variables
    change = Measured(
        [
            None if is_overwritten(new) else new - old
            for new, old in zip(updated, before, strict=True)
        ]
    )
    ran = chain.run("update", change, dataclasses.replace(context, variables=before))
    for variable, old, made, kept in zip(
        updated, before, change.values, ran.values.values, strict=True
    ):
        if made is not None:
            # Where nothing was bounded, adding the change again would round the weight anew.
            same = ops.all(made == kept)
            variable.assign(ops.where(same, variable, old + kept))
    chain.store(ran.new_states)


def _average(part: Any, window: int) -> None:
    """Advance the averages of one optimizer, and overwrite the weights when it is due.

    Keras has no public call for it. It asks for the number of windows before this call.
    """
    windows = (value_of(counter(part)) - 1) // window
    pairs = averages(part)
    for variable, mean in pairs:
        momentum = ops.cast(windows > 0, mean.dtype) * part.ema_momentum
        mean.assign(momentum * mean + (1 - momentum) * variable)
    frequency = part.ema_overwrite_frequency
    if frequency:
        due = (windows + 1) % frequency == 0
        for variable, mean in pairs:
            variable.assign(ops.where(due, mean, variable))
