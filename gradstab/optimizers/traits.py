"""Traits of optimizers: what gradstab may rely on in the steps of a class, in one table.

Each rule that depends on the kind of an optimizer asks for a trait here and never for a class.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final

import keras
from keras import ops

from gradstab._variables import value_of
from gradstab.keras_hooks.optimizer_state import (
    LARGEST_SECOND_MOMENTS,
    MEAN_GRADIENTS,
    SECOND_MOMENTS,
    SUMS_OF_SQUARES,
    slot,
)

# Takes an optimizer and one of its variables.
Moments = Callable[[Any, Any], tuple[Any, ...]]


@dataclasses.dataclass(frozen=True)
class Traits:
    """Traits of the optimizers of one class.

    Attributes:
        is_scale_invariant: Whether steps stay the same if all gradients are multiplied by a number.
        moves_by_rate: Whether an entry moves by about the learning rate in a step, however large
            its gradient is.
        writes_by_assign: Whether the optimizer makes each of its assignments through its methods
            `assign`, `assign_add` and `assign_sub`.
        momentum: Gives the momentum that SGD has; `None` for all other updates.
        second_moment: Gives, for an optimizer and a variable, the tensor that it divides by the
            root of, and one that is 0 for an entry that never had a gradient; an empty tuple if the
            optimizer keeps nothing of this variable. `None` if it divides by no such root.
        corrects_bias: Whether it divides that tensor by 1 − beta_2ᵗ, as Adam does, and adds its
            `epsilon` outside of the root.
    """

    is_scale_invariant: bool = False
    moves_by_rate: bool = False
    writes_by_assign: bool = False
    momentum: Callable[[Any], float] | None = None
    second_moment: Moments | None = None
    corrects_bias: bool = False


def traits_of(optimizer: Any) -> Traits:
    """Return the traits of an optimizer: its class's, or those of the nearest base class.

    A subclass may write in other ways than its base, so that `writes_by_assign` is not inherited.
    """
    for kind in type(optimizer).__mro__:
        if kind in TRAITS:
            found = TRAITS[kind]
            is_own = kind is type(optimizer)
            return found if is_own else dataclasses.replace(found, writes_by_assign=False)
    return Traits()


def register_traits(
    optimizer_class: type,
    *,
    is_scale_invariant: bool = False,
    moves_by_rate: bool = False,
    writes_by_assign: bool = False,
    momentum: Callable[[Any], float] | None = None,
    second_moment: Moments | None = None,
    corrects_bias: bool = False,
) -> None:
    """Tell gradstab what it may rely on in the steps of a custom optimizer.

    Without this a subclass counts as its nearest registered base class, and any other optimizer as
    one of which nothing is known: everything works, but rules that need a trait leave it alone.
    Registering a class again replaces what was said of it.

    Args:
        optimizer_class: A subclass of `keras.optimizers.Optimizer`.
        is_scale_invariant: See `Traits`, as for all that follow.
        moves_by_rate: Such as Adam and Lion.
        writes_by_assign: True saves a condition round the update; false is always right.
        momentum: For SGD and its subclasses.
        second_moment: For what `effective_learning_rates` tells.
        corrects_bias: For the same.

    Raises:
        TypeError: If it is no class of optimizers.

    Example:
        >>> import keras
        >>> from gradstab.optimizers import register_traits
        >>> class SignSGD(keras.optimizers.Optimizer):
        ...     def update_step(self, gradient, variable, learning_rate):
        ...         self.assign_sub(variable, learning_rate * keras.ops.sign(gradient))
        >>> register_traits(
        ...     SignSGD, is_scale_invariant=True, moves_by_rate=True, writes_by_assign=True
        ... )
    """
    optimizers = keras.optimizers.Optimizer
    if not (isinstance(optimizer_class, type) and issubclass(optimizer_class, optimizers)):
        raise TypeError(
            "`optimizer_class` must be a subclass of keras.optimizers.Optimizer. Received: "
            f"optimizer_class={optimizer_class!r}"
        )
    TRAITS[optimizer_class] = Traits(
        is_scale_invariant=is_scale_invariant,
        moves_by_rate=moves_by_rate,
        writes_by_assign=writes_by_assign,
        momentum=momentum,
        second_moment=second_moment,
        corrects_bias=corrects_bias,
    )


def _of_adagrad(optimizer: Any, variable: Any) -> tuple[Any, ...]:
    total = slot(optimizer, SUMS_OF_SQUARES, variable)
    return () if total is None else (total, total)


def _of_rmsprop(optimizer: Any, variable: Any) -> tuple[Any, ...]:
    second = slot(optimizer, SECOND_MOMENTS, variable)
    if second is None or not optimizer.centered:
        return () if second is None else (second, second)
    mean = slot(optimizer, MEAN_GRADIENTS, variable)
    return ops.maximum(value_of(second) - ops.square(value_of(mean)), 0.0), second


def _of_adam(optimizer: Any, variable: Any) -> tuple[Any, ...]:
    second = slot(optimizer, SECOND_MOMENTS, variable)
    if second is None or not optimizer.amsgrad:
        return () if second is None else (second, second)
    return slot(optimizer, LARGEST_SECOND_MOMENTS, variable), second


def _momentum_of_sgd(optimizer: Any) -> float:
    return float(optimizer.momentum)


_BY_RATE: Final = Traits(is_scale_invariant=True, moves_by_rate=True, writes_by_assign=True)
ADAM: Final = dataclasses.replace(_BY_RATE, second_moment=_of_adam, corrects_bias=True)
ADAGRAD: Final = Traits(is_scale_invariant=True, writes_by_assign=True, second_moment=_of_adagrad)
TRAITS: dict[type, Traits] = {
    keras.optimizers.SGD: Traits(writes_by_assign=True, momentum=_momentum_of_sgd),
    keras.optimizers.RMSprop: dataclasses.replace(_BY_RATE, second_moment=_of_rmsprop),
    keras.optimizers.Adam: ADAM,
    keras.optimizers.AdamW: ADAM,
    keras.optimizers.Nadam: _BY_RATE,
    keras.optimizers.Adamax: _BY_RATE,
    keras.optimizers.Lion: _BY_RATE,
    keras.optimizers.Adagrad: ADAGRAD,
    keras.optimizers.Adadelta: Traits(is_scale_invariant=True, writes_by_assign=True),
    keras.optimizers.Adafactor: Traits(is_scale_invariant=True, writes_by_assign=True),
    keras.optimizers.Lamb: Traits(is_scale_invariant=True, writes_by_assign=True),
    keras.optimizers.Ftrl: Traits(writes_by_assign=True),
}
