"""What Keras' optimizers do differently while one step of gradstab's is traced or run.

Keras unscales and accumulates inside `apply`, sums over the replicas, and averages weights (EMA)
and applies constraints at its end. What gradstab has done by then, or does afterwards, is switched
off here. Keras reads attributes while it traces, so that a change around the call is enough.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import keras
from keras import ops

from gradstab._nesting import parts
from gradstab._variables import resource, value_of
from gradstab.keras_hooks.optimizer_state import decays
from gradstab.keras_hooks.substitute import (
    replaced_attribute,
    replaced_method,
    replaced_untracked,
)

Writer: TypeAlias = Callable[[Any, Any], None]

# Where Keras accumulates, clips and applies; see `_applying_windows`.
_APPLY_GRADIENTS = "_backend_apply_gradients"
# Keras' optimizers sum the gradients over the replicas in this private method, once more after us.
_INNER_REDUCTION = "_all_reduce_sum_gradients"


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


@contextlib.contextmanager
def assigning(
    optimizer: Any, assign: Writer, add: Writer, subtract: Writer, accept: Any
) -> Iterator[None]:
    """Have an optimizer's assignments, its weight decay and its count made by other functions.

    Args:
        optimizer: An optimizer that makes all of its assignments through `assign`, `assign_add` and
            `assign_sub`, built.
        assign: Takes a variable and a value, as these methods do.
        add: The same.
        subtract: The same.
        accept: Boolean scalar tensor: whether the step counts.
    """

    def decay(variables: Sequence[Any]) -> None:
        for variable in map(resource, variables):
            if decays(optimizer, variable):
                share = ops.cast(optimizer.weight_decay, variable.dtype)
                rate = ops.cast(value_of(optimizer.learning_rate), variable.dtype)
                subtract(variable, variable * share * rate)

    count = ReadOnce(vars(optimizer)["_iterations"], accept)
    with (
        replaced_method(optimizer, "_apply_weight_decay", decay),
        replaced_method(optimizer, "assign", assign),
        replaced_method(optimizer, "assign_add", add),
        replaced_method(optimizer, "assign_sub", subtract),
        replaced_untracked(optimizer, "_iterations", count),
    ):
        yield


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


@contextlib.contextmanager
def without_reduction(optimizers: Iterable[Any]) -> Iterator[None]:
    """Keep Keras' optimizers from summing over the replicas what is summed already."""
    with contextlib.ExitStack() as stack:
        for optimizer in optimizers:
            stack.enter_context(replaced_method(optimizer, _INNER_REDUCTION, list))
        yield


def reduces_once(optimizers: Iterable[Any]) -> bool:
    """Whether the reduction inside the optimizers can be switched off in this version of Keras."""
    return all(hasattr(type(optimizer), _INNER_REDUCTION) for optimizer in optimizers)
