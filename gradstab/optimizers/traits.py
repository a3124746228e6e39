"""Traits of optimizer classes that gradstab's rules rely on, in one table.

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
        is_scale_invariant: Whether multiplying all gradients by a number leaves the steps
            unchanged.
        moves_by_rate: Whether a step moves each entry by about the learning rate, however large its
            gradient is.
        writes_by_assign: Whether the optimizer makes each of its assignments through its methods
            `assign`, `assign_add` and `assign_sub`.
        momentum: Function that returns SGD's momentum; `None` for other optimizers.
        second_moment: Function of an optimizer and a variable. Returns the tensor whose root
            divides the step, and one that is 0 for entries that never had a gradient; an empty
            tuple if the optimizer keeps nothing for this variable. `None` for optimizers without
            one.
        corrects_bias: Whether that tensor is divided by 1 − beta_2ᵗ, as in Adam, and `epsilon` is
            added outside the root.
    """

    is_scale_invariant: bool = False
    moves_by_rate: bool = False
    writes_by_assign: bool = False
    momentum: Callable[[Any], float] | None = None
    second_moment: Moments | None = None
    corrects_bias: bool = False


def traits_of(optimizer: Any) -> Traits:
    """Return the traits of an optimizer's class, or of its nearest registered base class.

    `writes_by_assign` is not inherited, since a subclass may write in other ways than its base.
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
    """Register the traits of a custom optimizer, on which gradstab's rules rely.

    Without it a subclass has the traits of its nearest registered base class, and any other
    optimizer has none: everything works, but rules that need a trait leave it alone. Registering a
    class again replaces its traits.

    Args:
        optimizer_class: A subclass of `keras.optimizers.Optimizer`.
        is_scale_invariant: Whether multiplying all gradients by a number leaves the steps
            unchanged.
        moves_by_rate: Whether a step moves each entry by about the rate, as in Adam and Lion.
        writes_by_assign: Whether the optimizer changes variables only through its methods `assign`,
            `assign_add` and `assign_sub`. True saves time; false is always right.
        momentum: Function that returns the momentum, for SGD and its subclasses.
        second_moment: Function as in `Traits`, for `effective_learning_rates`.
        corrects_bias: Whether the second moment is bias-corrected, for the same.

    Raises:
        TypeError: If it is not a subclass of `keras.optimizers.Optimizer`.

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
