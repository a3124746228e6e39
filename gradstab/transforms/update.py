"""Transforms of the update: they bound the weight change that the inner optimizer computed."""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal, final

from keras import ops

from gradstab._serialization import register
from gradstab._validation import check_float
from gradstab.functional.clipping import clip_factor
from gradstab.functional.norms import norms
from gradstab.transforms.base import Context, State, Transform
from gradstab.transforms.bounds import Bound
from gradstab.transforms.measured import Measured


@final
@register
class LimitUpdateRatio(Transform):
    """Bounds the change of each variable relative to its norm, with any inner optimizer.

    Δw ← Δw·min(1, r·max(‖w‖, ε)/‖Δw‖) for each variable w and its change Δw, weight decay included,
    so that ‖Δw‖ ≤ r·max(‖w‖, ε). The norms are taken over the whole variable in float32. It bounds
    the step itself, which a clip of the gradient can't: Adam's step is nearly the same for
    gradients of any scale.

    Args:
        max_ratio: r, a positive float; may be infinite. Healthy runs move weights by 1e-4 to 1e-2
            of their norm in a step. Can be assigned during a run.
        epsilon: ε, the smallest norm used in the bound, so that variables that begin at zero can
            move; a positive float. Can be assigned during a run.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If one is zero, negative or NaN.

    Reference: You, Gitman and Ginsburg, 2017, Large batch training of convolutional networks, whose
    layer-wise rate sets the same ratio instead of bounding it.

    >>> LimitUpdateRatio(0.01)
    LimitUpdateRatio(max_ratio=0.01, epsilon=0.001)
    """

    stage: ClassVar[Literal["rate", "gradient", "update"]] = "update"
    max_ratio = Bound(partial(check_float, allow_inf=True))
    epsilon = Bound(check_float)

    def __init__(self, max_ratio: float, epsilon: float = 1e-3) -> None:
        self.max_ratio = max_ratio
        self.epsilon = epsilon

    def apply(self, values: Measured, state: State, context: Context) -> tuple[Measured, State]:
        """Scale each update to its bound."""
        weight_norms = ops.maximum(norms(context.variables), self.bound("epsilon"))
        return values.scaled(clip_factor(values.norms, self.bound("max_ratio") * weight_norms)), {}
