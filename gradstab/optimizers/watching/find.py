"""Finds all optimizers in a model, gradstab's and others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from gradstab._layers import all_layers
from gradstab._nesting import parts, wrappers_and_inner
from gradstab.keras_hooks.attributes import own_attributes
from gradstab.optimizers.model.binding import is_built, trains_by_keras_step
from gradstab.optimizers.stabilized import StabilizedOptimizer


def optimizers_of(model: Any) -> dict[str, Any]:
    """Return every optimizer in a model, by name, each once.

    The one that it was compiled with comes first, as `"optimizer"`. Others are attributes of the
    model or of a layer or model in it, in lists and dictionaries too: `"d_optimizer"`,
    `"optimizers_0"`, `"critic_optimizer"` for `model.critic.optimizer`. An optimizer inside
    another, as in a `LossScaleOptimizer`, is not listed separately; of a `MultiOptimizer` with
    parts of gradstab's, the parts are listed instead.

    Args:
        model: A `keras.Model`.
    """
    found: dict[str, Any] = {}
    seen: set[int] = set()
    for holder in all_layers(model):
        prefix = "" if holder is model else f"{holder.name}_"
        for attribute, value in _attributes(holder):
            for name, optimizer in _named(attribute.lstrip("_"), value):
                if id(optimizer) not in seen:
                    seen.add(id(optimizer))
                    found[_free(prefix + name, found)] = optimizer
    inside = {id(inner) for optimizer in found.values() for inner in _inside(optimizer)}
    return {name: each for name, each in found.items() if id(each) not in inside}


def stabilized_optimizer(model_or_optimizer: Any) -> StabilizedOptimizer | None:
    """Return the `StabilizedOptimizer` of a compiled model, or the one inside an optimizer.

    Under `mixed_float16`, `compile` wraps the optimizer in a `LossScaleOptimizer`. This function
    returns the one inside, which has the telemetry.

    Args:
        model_or_optimizer: A compiled model, or an optimizer that may wrap others.

    Returns:
        The optimizer, or `None` if there is none of gradstab's.

    >>> import gradstab, keras
    >>> scaled = keras.optimizers.LossScaleOptimizer(gradstab.stabilize("sgd"))
    >>> gradstab.optimizers.stabilized_optimizer(scaled).telemetry.read().cursor
    0
    """
    optimizer = getattr(model_or_optimizer, "optimizer", model_or_optimizer)
    ours = (each for each in wrappers_and_inner(optimizer) if isinstance(each, StabilizedOptimizer))
    return next(ours, None)


def stabilized_optimizers(model: Any) -> dict[str, StabilizedOptimizer]:
    """Return the `StabilizedOptimizer`s among `optimizers_of`, without loss scales round them."""
    found = {name: stabilized_optimizer(each) for name, each in optimizers_of(model).items()}
    return {name: ours for name, ours in found.items() if ours is not None}


def bind(model: Any) -> StabilizedOptimizer | None:
    """Bind a model to every gradstab optimizer in it; steps traced before are traced again.

    Args:
        model: A compiled `keras.Model`, built or not; one that is not built is not bound.

    Returns:
        The optimizer that the model was compiled with, or `None` if that is not gradstab's.
    """
    if is_built(model):
        first: StabilizedOptimizer | None = None
        traced_without = False
        for optimizer in stabilized_optimizers(model).values():
            traced_without |= optimizer.bind(model) if first is None else optimizer.share(first)
            first = first or optimizer
        if traced_without and getattr(model, "train_function", None) is not None:
            model.make_train_function(force=True)
    return stabilized_optimizer(model)


def trains_the_whole(model: Any) -> bool:
    """Whether the optimizer that a model was compiled with trains all of its weights.

    Of a model with a step of its own that holds several optimizers it is not known.
    """
    if getattr(model, "optimizer", None) is None:
        return False
    return trains_by_keras_step(model) or len(optimizers_of(model)) == 1


def loss_of_no_step(model: Any) -> dict[str, float]:
    """Return NaN as the `loss` of an epoch of which no step was applied; otherwise nothing.

    Keras shows 0 as the mean of nothing.
    """
    ours = stabilized_optimizer(model)
    nothing = ours is not None and ours.applied_nothing
    return {"loss": math.nan} if nothing else {}


def _attributes(holder: Any) -> list[tuple[str, Any]]:
    """Return the attributes that a person gave a layer, those with private names last."""

    def rank(name: str) -> int:
        return 0 if name == "optimizer" else 2 if name.startswith("_") else 1

    return sorted(own_attributes(holder).items(), key=lambda item: rank(item[0]))


def _named(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the optimizers in an attribute with their names."""
    if isinstance(value, keras.optimizers.Optimizer):
        of_ours = [part for part in parts(value) if stabilized_optimizer(part) is not None]
        if of_ours and value not in of_ours and not isinstance(value, StabilizedOptimizer):
            for place, part in enumerate(parts(value)):
                yield f"{name}_{place}", part
        else:
            yield name, value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _named(f"{name}_{key}", each)
    elif isinstance(value, list | tuple):
        for place, each in enumerate(value):
            yield from _named(f"{name}_{place}", each)


def _free(name: str, taken: Mapping[str, Any]) -> str:
    """Return a name that is not taken yet."""
    number, free = 2, name
    while free in taken:
        number, free = number + 1, f"{name}_{number}"
    return free


def _inside(optimizer: Any) -> Iterator[Any]:
    """Yield the optimizers that stand inside one, at any depth."""
    for inner in (getattr(optimizer, "inner_optimizer", None), *parts(optimizer)):
        if inner is not None and inner is not optimizer:
            yield inner
            yield from _inside(inner)
