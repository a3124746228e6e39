"""Shows each batch that `fit` trains on to a function of the compiled step, outside of XLA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from gradstab.keras_hooks.substitute import replaced_untracked

# Where Keras hands a batch to the step, outside of the part that XLA compiles.
_STEP_HOOK = "_autoconvert_optionals"
_MAKE = "make_train_function"
_MARK = "gradstab_shows_batches"

AfterStep: TypeAlias = Callable[[Any], None]


def show_batches(model: Any, after_step: AfterStep) -> bool:
    """Have the train functions that Keras makes from now on call a function after each step.

    Callbacks see no data. Keras compiles the step with XLA, and round it what takes the batch from
    the iterator; only there can a condition hold batches of any shape. Keras' private
    `_autoconvert_optionals` makes the function that is called there; it is replaced on this one
    model while it makes a train function.

    Args:
        model: The model that `fit` trains.
        after_step: Takes the batch, in the graph, or eagerly where steps run so.

    Returns:
        Whether this version of Keras can do that.
    """
    stop_showing(model)
    original = getattr(model, _STEP_HOOK, None)
    if original is None:
        return False
    make = model.make_train_function

    def with_batches(step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        converted = original(step)

        def step_and_show(batch: Any) -> Any:
            logs = converted(batch)
            after_step(batch)
            return logs

        return step_and_show

    def make_train_function(*arguments: Any, **named: Any) -> Any:
        with replaced_untracked(model, _STEP_HOOK, with_batches):
            before = model.train_function
            result = make(*arguments, **named)
        if model.train_function is not before:
            vars(model.train_function)[_MARK] = True
        return result

    vars(model)[_MAKE] = make_train_function
    return True


def stop_showing(model: Any) -> None:
    """Leave the making of train functions to Keras again; those that were made go on showing."""
    vars(model).pop(_MAKE, None)


def shows_batches(train_function: Any) -> bool:
    """Whether a train function was made so."""
    return bool(getattr(train_function, _MARK, False))
