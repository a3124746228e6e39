"""Checks of optimizers and transforms; each refusal gives the reason and the fix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from gradstab.optimizers.step.accumulation import window_size
from gradstab.transforms.base import Transform

# Keras' clipping arguments and the transforms of the same meaning.
KERAS_CLIPPING = {
    "clipvalue": "ClipByValue",
    "clipnorm": "ClipByNorm",
    "global_clipnorm": "ClipByGlobalNorm",
}


def check_optimizer(optimizer: Any) -> None:
    """Raise unless `optimizer` is an instance of Keras 3's `Optimizer`.

    Raises:
        TypeError: Names the class that was given; legacy `tf_keras` optimizers get their own
        advice.
    """
    if isinstance(optimizer, keras.optimizers.Optimizer):
        return
    if isinstance(optimizer, keras.Model):
        raise TypeError(
            "`inner_optimizer` must be an optimizer, not a model. Received: "
            f"inner_optimizer=<{type(optimizer).__name__} {optimizer.name!r}>. Pass the optimizer "
            'where the model is compiled: model.compile(gradstab.stabilize("adam"), loss=...)'
        )
    owner = optimizer if isinstance(optimizer, type) else type(optimizer)
    module = owner.__module__
    given = f"Received: inner_optimizer={optimizer!r} (class {module}.{owner.__name__})"
    if module.split(".", 1)[0] == "tf_keras" or ".legacy" in module:
        raise TypeError(
            "`inner_optimizer` must be a Keras 3 optimizer, not a legacy tf_keras one. Use "
            f"keras.optimizers.{owner.__name__}. {given}"
        )
    raise TypeError(
        f"`inner_optimizer` must be a keras.optimizers.Optimizer instance. {given}. For a name or "
        "a config use `gradstab.stabilize`"
    )


def check_strategy() -> None:
    """Raise under a strategy whose replicas do not step together.

    Raises:
        ValueError: Names the strategy.
    """
    strategy = tf.distribute.get_strategy()
    if isinstance(strategy, tf.distribute.ParameterServerStrategy):
        raise ValueError(
            "StabilizedOptimizer needs replicas that step together, so that one verdict holds for "
            f"all. Received: {type(strategy).__name__}, whose workers step on their own. Use "
            "tf.distribute.MirroredStrategy or MultiWorkerMirroredStrategy"
        )


def check_inner_optimizer(optimizer: Any) -> None:
    """Raise unless `StabilizedOptimizer` can wrap `optimizer` as it is.

    Raises:
        TypeError: If it is no Keras optimizer.
        ValueError: If it is wrapped already, scales the loss or clips, or if its parts accumulate
            over different windows.
    """
    check_optimizer(optimizer)
    name = type(optimizer).__name__
    if _is_wrapped(optimizer):
        raise ValueError(
            "`inner_optimizer` must not be a StabilizedOptimizer itself. Received: "
            f"inner_optimizer={optimizer!r}. Put all transforms into one list, or use "
            "`gradstab.stabilize` or a `clip_by_*` function, which join them"
        )
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise ValueError(
            "`inner_optimizer` must not be a LossScaleOptimizer, whose gradients are still scaled. "
            f"Received: inner_optimizer={name}. Nest them the other way round: "
            "keras.optimizers.LossScaleOptimizer(StabilizedOptimizer(...)), as `compile` and "
            "`gradstab.stabilize` do"
        )
    for each in (optimizer, *getattr(optimizer, "optimizers", [])):
        if _is_wrapped(each):
            raise ValueError(
                "`inner_optimizer` must not be a MultiOptimizer with wrapped parts, whose steps "
                f"would be judged one by one. Received: {name} with {each!r}. Wrap the "
                "MultiOptimizer alone, or its parts alone"
            )
        for argument, transform in KERAS_CLIPPING.items():
            if getattr(each, argument, None):
                raise ValueError(
                    f"`inner_optimizer` must not clip by itself, or gradients are clipped twice. "
                    f"Received: {type(each).__name__} with {argument}={getattr(each, argument)}. "
                    f"Remove it and list gradstab.transforms.{transform}"
                    f"({getattr(each, argument)}), or use `gradstab.stabilize`, which takes it over"
                )
    window_size(optimizer)


def _is_wrapped(optimizer: Any) -> bool:
    module = type(optimizer).__module__
    return module.startswith("gradstab.") and hasattr(optimizer, "transforms")


def check_transforms(transforms: Any) -> tuple[Transform, ...]:
    """Return transforms as a tuple, or raise.

    Raises:
        TypeError: If it is not a list of `Transform` instances.
        ValueError: If one stands in it twice.
    """
    if isinstance(transforms, Transform) or not isinstance(transforms, Sequence):
        raise TypeError(
            f"`transforms` must be a list of transforms. Received: transforms={transforms!r}"
        )
    for transform in transforms:
        if not isinstance(transform, Transform):
            raise TypeError(
                "`transforms` must hold instances of gradstab.transforms.Transform. Received: "
                f"{transform!r}"
            )
        if transform.stage == "update" and transform.cause is not None:
            raise ValueError(
                "`transforms` must not hold one that skips steps in the update stage, where the "
                f"inner optimizer has moved already. Received: {transform!r} with "
                f"cause={transform.cause!r}. Give it stage='gradient', or no cause"
            )
    if len({id(transform) for transform in transforms}) < len(transforms):
        raise ValueError(
            "`transforms` must not hold the same instance twice, since it has one set of bounds. "
            f"Received: transforms={list(transforms)!r}"
        )
    return tuple(transforms)


def no_clipping(name: str) -> property:
    """A clipping argument of Keras', for which there is a transform of the same meaning."""

    def read(self: Any) -> None:
        return None

    def write(self: Any, value: Any) -> None:
        if value is not None:  # Keras' own `__init__` sets it.
            transform = KERAS_CLIPPING[name]
            raise ValueError(
                f"`{name}` can't be set on a StabilizedOptimizer, which clips by its transforms. "
                f"Received: {name}={value!r}. List gradstab.transforms.{transform}({value!r}) when "
                "it is made, or set the bound of such a transform in `optimizer.transforms`"
            )

    return property(read, write, doc=f"`{name}`: always `None`.")
