"""Reads the gradients of a model over its depth: do they vanish or explode on the way back?

The ratio between the first and the last layer alone mislabels: where gradients are 1e-13 in all
layers it can be anything. So the level and the profile over depth are read together, and a model
that has learned is not called sick because its gradients have become small.

| what | threshold | source |
|---|---|---|
| fades on the way back | first/last < 1e-3 and first norm < 1e-4 | Zhang et al., 2021, AUTOTRAINER |
| dead in all layers | mean abs(g) < 1e-7 everywhere | Amazon SageMaker Debugger, VanishingGradient |
| grows on the way back | first/last > 70 | Zhang et al., 2021, AUTOTRAINER |
| too large for the weights | at a rate of 0.01 a step would change them by more than 0.1 | the upper end of the usual band of update ratios, 1e-4 to 1e-1 |
"""  # noqa: E501  a table row can't be broken

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Final

_FADED_RATIO: Final = 1e-3
_FADED_NORM: Final = 1e-4
_DEAD_MEAN: Final = 1e-7
_GROWN_RATIO: Final = 70.0
# 0.1 of the weights' norm per step at a rate of 0.01.
_TOO_LARGE: Final = 10.0

THRESHOLDS: Final = (
    f"Thresholds: vanishing if first/last < {_FADED_RATIO:g} and the first norm < {_FADED_NORM:g} "
    f"(AUTOTRAINER, 2021), or mean |gradient| < {_DEAD_MEAN:g} in all layers of a model that has "
    "not learned (SageMaker Debugger); exploding if the norm in the first layer is more than "
    f"{_TOO_LARGE:g} times that of its weights (a step at a rate of 0.01 would change them by more "
    f"than 0.1, the upper end of the usual band), and first/last > {_GROWN_RATIO:g} (AUTOTRAINER) "
    "or all layers are so."
)


@dataclasses.dataclass(frozen=True)
class LayerGradient:
    """Gradient of one layer's kernel.

    Attributes:
        layer: Name of the layer.
        shape: Shape of the kernel.
        norm: Its gradient's norm, the mean over the batches.
        mean_abs: Mean of the absolute values of the entries, over the batches.
        weight_norm: Norm of the kernel.
    """

    layer: str
    shape: tuple[int, ...]
    norm: float
    mean_abs: float
    weight_norm: float

    @property
    def relative(self) -> float:
        """Norm of the gradient over that of the weights."""
        return _over(self.norm, self.weight_norm)


def first_to_last(profile: Sequence[LayerGradient]) -> float:
    """Return the gradient norm of the first layer over that of the last; NaN for 0/0."""
    return _over(profile[0].norm, profile[-1].norm)


def judge(profile: Sequence[LayerGradient], *, learned: bool) -> str:
    """Return in words whether the gradients vanish or explode.

    Args:
        profile: Layers in the order of the forward pass, at least one.
        learned: Whether the model does clearly better than guessing.

    >>> fading = [
    ...     LayerGradient("first", (3, 3, 1, 8), 1e-9, 1e-10, 1.0),
    ...     LayerGradient("last", (8, 10), 1e-2, 1e-3, 1.0),
    ... ]
    >>> judge(fading, learned=False)
    'vanishing: the gradient fades on its way to the first layer (first/last 1e-07)'
    """
    bad = [each.layer for each in profile if not math.isfinite(each.norm)]
    if bad:
        return f"not finite: the gradient of `{bad[0]}` is NaN or infinite"
    first, ratio = profile[0], first_to_last(profile)
    if len(profile) > 1 and ratio < _FADED_RATIO and first.norm < _FADED_NORM:
        return (
            f"vanishing: the gradient fades on its way to the first layer (first/last {ratio:.3g})"
        )
    if not learned and all(each.mean_abs < _DEAD_MEAN for each in profile):
        return "vanishing: the gradient is next to nothing in all layers, and the model guesses"
    if first.relative > _TOO_LARGE:
        if len(profile) > 1 and ratio > _GROWN_RATIO:
            return (
                "exploding: the gradient grows on its way to the first layer "
                f"(first/last {ratio:.3g})"
            )
        if all(each.relative > _TOO_LARGE for each in profile):
            return "exploding: the gradient is too large for the weights in all layers"
    return "neither vanishing nor exploding"


def measure(model: Any, batches: Any) -> list[LayerGradient]:
    """Return the gradient of each layer's kernel in the mean over batches of data.

    Args:
        model: A compiled Keras model.
        batches: Pairs of inputs and targets.
    """
    import numpy as np
    import tensorflow as tf

    kernels = [
        variable
        for variable in model.trainable_variables
        if len(variable.shape) > 1 and "kernel" in variable.name
    ]

    @tf.function
    def gradients(inputs: Any, targets: Any) -> Any:
        with tf.GradientTape() as tape:
            # As it is used, without dropout and augmentation.
            outputs = model(inputs, training=False)
            loss = model.compute_loss(x=inputs, y=targets, y_pred=outputs, training=False)
        return tape.gradient(
            loss, [kernel.value for kernel in kernels], unconnected_gradients="zero"
        )

    norms, means = [], []
    for inputs, targets in batches:
        values = [np.asarray(value, "float64") for value in gradients(inputs, targets)]
        norms.append([np.linalg.norm(value) for value in values])
        means.append([np.abs(value).mean() for value in values])
    return [
        LayerGradient(
            layer=kernel.path.rpartition("/")[0],
            shape=tuple(kernel.shape),
            norm=float(norm),
            mean_abs=float(mean),
            weight_norm=float(np.linalg.norm(np.asarray(kernel.numpy(), "float64"))),
        )
        for kernel, norm, mean in zip(
            kernels, np.mean(norms, axis=0), np.mean(means, axis=0), strict=True
        )
    ]


def _over(a: float, b: float) -> float:
    if b == 0.0:
        return math.nan if a == 0.0 else math.inf
    return a / b
