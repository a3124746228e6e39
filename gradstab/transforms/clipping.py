"""Clipping by value, by norm and by global norm, as transforms of the gradient."""

from __future__ import annotations

from functools import partial
from typing import Any, final

from keras import ops

from gradstab._serialization import register
from gradstab._validation import check_float
from gradstab.functional.clipping import clip_factor
from gradstab.transforms.base import Context, State, Transform
from gradstab.transforms.bounds import Bound
from gradstab.transforms.measured import Measured

_check_bound = partial(check_float, allow_inf=True)


@final
@register
class ClipByValue(Transform):
    """Limits every entry of every gradient to [-`clip_value`, `clip_value`].

    Use it where single entries spike. It changes the direction of the gradient; to keep the
    direction, clip by norm. An infinite entry becomes ±`clip_value` (NaN stays NaN). To skip such
    steps, list `SkipNonFinite` too, which checks the gradient from before all transforms.

    Args:
        clip_value: Bound on the magnitude of an entry, a positive float; may be infinite. Can be
            assigned during a run.

    Raises:
        TypeError: If the bound is not a number.
        ValueError: If it is zero, negative or NaN.

    >>> ClipByValue(0.5)
    ClipByValue(clip_value=0.5)
    """

    clip_value = Bound(_check_bound)

    def __init__(self, clip_value: float) -> None:
        self.clip_value = clip_value

    def apply(self, values: Measured, state: State, context: Context) -> tuple[Measured, State]:
        """Clip each entry."""
        bound = self.bound("clip_value")

        def clip(_: int, value: Any) -> Any:
            limit = ops.cast(bound, value.dtype)
            return ops.clip(value, -limit, limit)

        return values.mapped(clip, clips=True), {}


@final
@register
class ClipByNorm(Transform):
    """Scales each variable's gradient separately, to a norm of at most `max_norm`.

    g ← g·min(1, c/‖g‖) for the gradient g of each variable, as Keras' `clipnorm`, with the norm
    taken in float32. It keeps the direction of each variable's gradient, but not that of the whole.
    A gradient with NaN or infinity is passed on unchanged.

    Args:
        max_norm: c, a positive float; may be infinite. Can be assigned during a run.

    Raises:
        TypeError: If the bound is not a number.
        ValueError: If it is zero, negative or NaN.

    >>> ClipByNorm(1.0)
    ClipByNorm(max_norm=1.0)
    """

    max_norm = Bound(_check_bound)

    def __init__(self, max_norm: float) -> None:
        self.max_norm = max_norm

    def apply(self, values: Measured, state: State, context: Context) -> tuple[Measured, State]:
        """Scale each gradient to its bound."""
        return values.scaled(clip_factor(values.norms, self.bound("max_norm"))), {}


@final
@register
class ClipByGlobalNorm(Transform):
    """Scales all gradients by one factor, to a global norm of at most `max_norm`.

    g ← g·min(1, c/‖(g₁, …, gₙ)‖). The first choice against exploding gradients: it keeps the
    direction of the step. Where the norm is not finite, the gradients are passed on unchanged, so
    that the faulty variable can be named.

    Args:
        max_norm: c, a positive float; may be infinite. Can be assigned during a run.

    Raises:
        TypeError: If the bound is not a number.
        ValueError: If it is zero, negative or NaN.

    Reference: Pascanu, Mikolov and Bengio, 2013, On the difficulty of training recurrent neural
    networks.

    >>> ClipByGlobalNorm(max_norm=1.0)
    ClipByGlobalNorm(max_norm=1.0)
    """

    max_norm = Bound(_check_bound)

    def __init__(self, max_norm: float) -> None:
        self.max_norm = max_norm

    def apply(self, values: Measured, state: State, context: Context) -> tuple[Measured, State]:
        """Scale all gradients by one factor."""
        return values.scaled(clip_factor(values.global_norm, self.bound("max_norm"))), {}
