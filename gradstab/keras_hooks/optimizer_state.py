"""Private state of Keras' optimizers: counts, slots, averages, accumulators, schedules.

Each function raises AttributeError where a version of Keras keeps it elsewhere.
"""

from __future__ import annotations

from typing import Any, Final

# Lists of slots, one entry for each trained variable, for `slot`.
FIRST_MOMENTS: Final = "_momentums"
SECOND_MOMENTS: Final = "_velocities"
LARGEST_SECOND_MOMENTS: Final = "_velocity_hats"
SUMS_OF_SQUARES: Final = "_accumulators"
MEAN_GRADIENTS: Final = "_average_gradients"


def trained_variables(optimizer: Any) -> list[Any]:
    """Return the variables that an optimizer was built for, in the order of its slots."""
    variables: list[Any] = optimizer._trainable_variables
    return variables


def slot(optimizer: Any, name: str, variable: Any) -> Any:
    """Return the variable in which an optimizer keeps something of another; `None` if it does not.

    Args:
        optimizer: A built optimizer.
        name: Which list of slots, such as `SECOND_MOMENTS`.
        variable: The variable that is trained, Keras' or TensorFlow's behind it.
    """
    return getattr(optimizer, name)[optimizer._get_variable_index(variable)]


def decays(optimizer: Any, variable: Any) -> bool:
    """Whether an optimizer's weight decay holds for a variable, as `update_step` receives it."""
    return optimizer.weight_decay is not None and bool(optimizer._use_weight_decay(variable))


def averages(optimizer: Any) -> list[tuple[Any, Any]]:
    """Return pairs of a variable and the running mean of its values (EMA), where there is one."""
    means = optimizer._model_variables_moving_average
    pairs = zip(trained_variables(optimizer), means, strict=True)
    return [(variable, mean) for variable, mean in pairs if mean is not None]


def accumulators(optimizer: Any) -> list[tuple[Any, Any]]:
    """Return pairs of a variable and the sum of its gradients over the window so far."""
    sums = optimizer._accumulated_gradients
    return list(zip(trained_variables(optimizer), sums, strict=True))


def counter(optimizer: Any) -> Any:
    """Return the variable that counts an optimizer's calls, micro-batches one by one.

    Under accumulation the public `iterations` is this count divided by the size of the window.
    """
    return optimizer._iterations


def learning_rate_source(optimizer: Any) -> Any:
    """Return the schedule, callable or variable that an optimizer's rate comes from.

    The public `learning_rate` is the value of a schedule and not the schedule.
    """
    return optimizer._learning_rate
