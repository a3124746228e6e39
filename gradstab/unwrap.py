"""Removes gradstab from a model, which keeps its weights and moments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

from gradstab._layers import all_layers
from gradstab._nesting import parts, unwrapped, wrappers_and_inner
from gradstab.keras_hooks.compiled_model import set_optimizer
from gradstab.keras_hooks.optimizer_state import learning_rate_source, trained_variables
from gradstab.optimizers.stabilized import StabilizedOptimizer
from gradstab.regularizers.penalties import L1, L1L2, L2
from gradstab.schedules.compose import Adjustable

_Schedule = keras.optimizers.schedules.LearningRateSchedule
_REGULARIZERS: dict[type, Any] = {
    L1: lambda r: keras.regularizers.L1(float(r.l1)),
    L2: lambda r: keras.regularizers.L2(float(r.l2)),
    L1L2: lambda r: keras.regularizers.L1L2(float(r.l1), float(r.l2)),
}


def unwrap(model_or_optimizer: Any, learning_rate: float | None = None) -> Any:
    """Remove gradstab from a model or an optimizer, and keep its weights and moments.

    Use it before you deploy: the result is plain Keras, and loads where gradstab is not installed.
    The inner optimizer keeps its slots and iterations, and gets back the clipping arguments that
    wrapping took over. gradstab's L1, L2 and L1L2 become Keras' own, and an `Adjustable` schedule
    that was not cut becomes the schedule inside it. Steps are no longer skipped or clipped.

    A model is changed in place. If a part of gradstab has no equivalent in Keras, nothing is
    changed.

    Args:
        model_or_optimizer: A `keras.Model` or an optimizer, wrapped or not.
        learning_rate: A fixed rate for the inner optimizer, for schedules that Keras lacks.

    Returns:
        The same model, or the inner optimizer (inside its `LossScaleOptimizer`, if it has one).

    Raises:
        TypeError: If it is neither a model nor an optimizer.
        ValueError: If a part has no equivalent in Keras; the message names it and the fix.

    >>> import gradstab
    >>> type(unwrap(gradstab.stabilize(keras.optimizers.Adam(1e-3)))).__name__
    'Adam'
    """
    if isinstance(model_or_optimizer, keras.Model):
        return _unwrap_model(model_or_optimizer, learning_rate)
    if isinstance(model_or_optimizer, keras.optimizers.Optimizer):
        _refuse(
            _foreign_schedules(model_or_optimizer, learning_rate)
            + _foreign_optimizers(model_or_optimizer)
            + _twice_clipped(model_or_optimizer)
        )
        return _unwrap_optimizer(model_or_optimizer, learning_rate)
    raise TypeError(
        "`model_or_optimizer` must be a keras.Model or a Keras optimizer. Received: "
        f"model_or_optimizer={model_or_optimizer!r}"
    )


def _unwrap_model(model: Any, learning_rate: float | None) -> Any:
    optimizer = getattr(model, "optimizer", None)
    foreign = _foreign_objects(model)
    if optimizer is not None:
        foreign += _foreign_schedules(optimizer, learning_rate) + _foreign_optimizers(optimizer)
        foreign += _twice_clipped(optimizer)
    _refuse(foreign)
    penalties = vars(model).get("_gradstab_penalties")  # as `training.set_penalties` left them
    if penalties is not None:
        penalties.detach()
    for layer in all_layers(model):
        for name, value in list(vars(layer).items()):
            if type(value) in _REGULARIZERS:
                setattr(layer, name, _REGULARIZERS[type(value)](value))
    for variable in model.variables:
        if type(getattr(variable, "regularizer", None)) in _REGULARIZERS:
            variable.regularizer = _REGULARIZERS[type(variable.regularizer)](variable.regularizer)
    if optimizer is not None:
        set_optimizer(model, _unwrap_optimizer(optimizer, learning_rate))
    return model


def _unwrap_optimizer(optimizer: Any, learning_rate: float | None) -> Any:
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer.inner_optimizer = _unwrap_optimizer(optimizer.inner_optimizer, learning_rate)
        return optimizer
    if isinstance(optimizer, StabilizedOptimizer):
        for name, bound in optimizer.taken_over.items():
            setattr(optimizer.inner_optimizer, name, bound)
        optimizer = optimizer.inner_optimizer
    schedule = learning_rate_source(optimizer)
    if learning_rate is not None:
        return _with_rate(optimizer, float(learning_rate))
    if isinstance(schedule, Adjustable):
        if isinstance(schedule.schedule, _Schedule):
            optimizer.learning_rate = schedule.schedule
        else:
            return _with_rate(optimizer, float(schedule.schedule) * float(schedule.factor))
    return optimizer


def _with_rate(optimizer: Any, learning_rate: float) -> Any:
    """Return an equal optimizer with a fixed rate and the same state.

    Keras can't set a number where a schedule was, so a new one is made from the config.
    """
    if not isinstance(
        learning_rate_source(optimizer), keras.optimizers.schedules.LearningRateSchedule
    ):
        optimizer.learning_rate = learning_rate
        return optimizer
    fresh = type(optimizer).from_config({**optimizer.get_config(), "learning_rate": learning_rate})
    if optimizer.built:
        fresh.build(trained_variables(optimizer))
        rate = learning_rate_source(fresh)
        targets = [variable for variable in fresh.variables if variable is not rate]
        for target, source in zip(targets, optimizer.variables, strict=True):
            target.assign(source)
    return fresh


def _refuse(names: list[str]) -> None:
    if names:
        raise ValueError(
            "`unwrap` can't replace what Keras has no equivalent of. Received: "
            f"{', '.join(sorted(set(names)))}. Pass `learning_rate=` to replace a schedule by a "
            "fixed rate; rebuild layers of gradstab's with Keras' own and copy their weights; "
            "compile the model with one of Keras' optimizers in place of gradstab's; of several "
            "clipping arguments leave one in `optimizer.taken_over`"
        )


def _foreign_schedules(optimizer: Any, learning_rate: float | None) -> list[str]:
    """Name the schedules of gradstab's that would stay behind."""
    if learning_rate is not None:
        return []
    schedule = learning_rate_source(unwrapped(optimizer))
    if isinstance(schedule, Adjustable):
        if isinstance(schedule.schedule, _Schedule) and schedule.factor != 1.0:
            return [f"Adjustable, cut to {schedule.factor:g} of its schedule"]
        schedule = schedule.schedule
    if isinstance(schedule, _Schedule):
        return list(_registered(keras.optimizers.schedules.serialize(schedule)))
    return []


def _foreign_optimizers(optimizer: Any) -> list[str]:
    """Name the optimizers of gradstab's that would stay behind: the wrapper would not."""
    optimizer = unwrapped(optimizer)
    each = [optimizer, *parts(optimizer)]
    return [type(o).__name__ for o in each if type(o).__module__.startswith("gradstab.")]


def _twice_clipped(optimizer: Any) -> list[str]:
    """Name several clipping arguments that would be given back: Keras loads no such optimizer."""
    ours = [o for o in wrappers_and_inner(optimizer) if isinstance(o, StabilizedOptimizer)]
    bounds = ours[0].taken_over if ours else {}
    if len(bounds) < 2:
        return []
    return [" and ".join(f"{name}={bound:g}" for name, bound in bounds.items()) + " at once"]


def _foreign_objects(model: Any) -> list[str]:
    """Name what the model's config holds of gradstab's beyond the regularizers."""
    try:
        config = model.get_config()
    except NotImplementedError:
        return []  # A subclassed model without a config can't be saved whole anyway.
    replaced = {regularizer.__name__ for regularizer in _REGULARIZERS}
    return [name for name in _registered(config) if name not in replaced]


def _registered(config: Any) -> Iterator[str]:
    """Yield the name of every class registered by gradstab, anywhere in a config."""
    if isinstance(config, dict):
        name = config.get("registered_name")
        if isinstance(name, str) and name.startswith("gradstab>"):
            yield name.removeprefix("gradstab>")
        config = list(config.values())
    if isinstance(config, list | tuple):
        for value in config:
            yield from _registered(value)
