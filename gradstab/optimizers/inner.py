"""Lets the inner optimizer apply, and transforms the change that it made.

Keras unscales and accumulates inside `apply`, averages weights (EMA) and applies constraints at its
end. Gradients have to be unscaled and accumulated before they are measured, and update transforms
act before averages and constraints. So these are switched off while the inner optimizer applies,
and done here, or before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
from keras import ops

from gradstab._substitute import replaced_attribute, replaced_method, replaced_untracked
from gradstab.functional._backend import value_of
from gradstab.optimizers.chain import Chain
from gradstab.transforms.base import Context
from gradstab.transforms.measured import Measured

# Where Keras accumulates, clips and applies; see `_applying_windows`.
_APPLY_GRADIENTS = "_backend_apply_gradients"


def parts(optimizer: Any) -> list[Any]:
    """Return the optimizers that do the work: those inside a `MultiOptimizer`, or the one given."""
    return list(getattr(optimizer, "optimizers", [optimizer]))


def is_overwritten(variable: Any) -> bool:
    """Whether the "gradient" is the variable's next value, as of Keras' float8 scales."""
    return bool(getattr(variable, "overwrite_with_gradient", False))


def resource(variable: Any) -> Any:
    """Return the TensorFlow variable that holds a Keras variable's value, or a bare one itself."""
    return variable.value if isinstance(variable, keras.Variable) else variable


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


@contextlib.contextmanager
def only_updating(optimizer: Any, variables: Sequence[Any], *, afterwards: bool) -> Iterator[None]:
    """Keep Keras from unscaling, from accumulating, and from what comes afterwards if asked to.

    Args:
        optimizer: The inner optimizer. Its attributes are read while its step is traced, so that
            changing them around the call is enough.
        variables: All variables that it trains.
        afterwards: Whether averages and constraints are left to `Afterwards`.
    """
    with contextlib.ExitStack() as stack:
        for each in {id(part): part for part in (optimizer, *parts(optimizer))}.values():
            stack.enter_context(replaced_attribute(each, "loss_scale_factor", None))
            if each.gradient_accumulation_steps:
                apply = _applying_windows(each)
                stack.enter_context(replaced_method(each, _APPLY_GRADIENTS, apply))
            if afterwards:
                stack.enter_context(replaced_attribute(each, "use_ema", False))
        for variable in variables if afterwards else ():
            if isinstance(variable, keras.Variable) and variable.constraint is not None:
                stack.enter_context(replaced_attribute(variable, "constraint", None))
        yield


class ReadOnce(keras.Variable):
    """A count as it was when the step began; what is assigned goes to the true variable.

    Args:
        variable: The variable that counts.
        accept: Boolean scalar tensor: whether assigning takes effect; `None` for "yes".
    """

    def __init__(self, variable: keras.Variable, accept: Any | None = None) -> None:
        # No variable of its own: it is the other one, read at another time.
        self.__dict__.update(variable.__dict__)
        self._as_read = value_of(variable)
        self._accept = accept

    @property
    def value(self) -> Any:
        """The value as it was."""
        return self._as_read

    def assign(self, value: Any) -> Any:
        """Assign to the true variable."""
        if self._accept is not None:
            value = ops.where(self._accept, value, self._as_read)
        return super().assign(value)


@contextlib.contextmanager
def reading_once(optimizer: Any) -> Iterator[None]:
    """Have Keras read its count of steps and its rate once in a step, not once for each variable.

    What it computes from them, such as Adam's bias correction, is then the same expression for all
    variables, which graphs compute once. Keras' public attributes take no tensors, so the private
    `_iterations` and `_learning_rate` are replaced while the step is traced or run.

    Args:
        optimizer: The inner optimizer, built.

    Raises:
        KeyError: If this version of Keras keeps them elsewhere.
    """
    with contextlib.ExitStack() as stack:
        for part in parts(optimizer):
            count = vars(part)["_iterations"]
            if not part.built or not isinstance(count, keras.Variable):
                continue
            stack.enter_context(replaced_untracked(part, "_iterations", ReadOnce(count)))
            stack.enter_context(with_rate(part, value_of(part.learning_rate)))
        yield


def with_rate(optimizer: Any, rate: Any) -> contextlib.AbstractContextManager[None]:
    """Have an optimizer take this tensor for its rate.

    Raises:
        KeyError: If this version of Keras keeps it elsewhere.
    """
    return replaced_untracked(optimizer, "_learning_rate", functools.partial(_same, rate))


def _same(value: Any) -> Any:
    return value


def _applying_windows(part: Any) -> Callable[[Any, Any], None]:
    """Return what stands in for Keras' private `_backend_apply_gradients` at the end of a window.

    That adds the gradient to its accumulators and applies inside a condition. Here the mean over
    the window comes in, and is applied; the setting itself has to stay, for the steps that Adam's
    bias correction counts depend on it. Averages are left to `Afterwards`.
    """

    def apply(gradients: Any, variables: Any) -> None:
        part._apply_weight_decay(variables)
        part._backend_update_step(gradients, variables, part.learning_rate)

    return apply


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


def counter(optimizer: Any) -> Any:
    """Return the variable that counts an optimizer's calls, micro-batches one by one.

    Under accumulation the public `iterations` is this count divided by the size of the window, so
    the private attribute is read.

    Raises:
        AttributeError: If this version of Keras keeps its count elsewhere.
    """
    return optimizer._iterations


def _average(part: Any, window: int) -> None:
    """Advance the averages of one optimizer, and overwrite the weights when it is due.

    Keras has no public call for it, so the list of averages is read from the private
    `_model_variables_moving_average`. It asks for the number of windows before this call.

    Raises:
        AttributeError: If this version of Keras keeps its averages elsewhere.
    """
    windows = (value_of(counter(part)) - 1) // window
    pairs = [
        (variable, mean)
        for variable, mean in zip(
            part._trainable_variables, part._model_variables_moving_average, strict=True
        )
        if mean is not None
    ]
    for variable, mean in pairs:
        momentum = ops.cast(windows > 0, mean.dtype) * part.ema_momentum
        mean.assign(momentum * mean + (1 - momentum) * variable)
    frequency = part.ema_overwrite_frequency
    if frequency:
        due = (windows + 1) % frequency == 0
        for variable, mean in pairs:
            variable.assign(ops.where(due, mean, variable))
