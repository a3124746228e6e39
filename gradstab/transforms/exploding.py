"""Kernels that begin so large that the net explodes are shrunk before anything is learned.

Where the logits of a classifier are large, its loss is in proportion to them, and, since layers
without normalization multiply, to the scale of each kernel: Σ w·∂L/∂w = L, kernel by kernel (Euler;
2L for a squared error). Then only examples that are told wrong have a gradient, and the net learns
as a perceptron does, without a margin. No clip helps, since nothing is wrong with the gradient: it
has to be taken with respect to smaller weights.
"""

from __future__ import annotations

import math
from typing import Any

from keras import ops

from gradstab.functional._backend import choose, value_of
from gradstab.transforms.base import Context
from gradstab.transforms.kernels import Kernels
from gradstab.transforms.measured import Measured

# Shares of the loss that are in proportion to the scale of a kernel, in the mean over all, from
# which on a net counts as exploding at first, and then still. Good starts of classifiers have 0 to
# 0.5; a squared error has up to 2 in good starts, too, and the norms alone tell.
_AT_FIRST, _STILL = 0.7, 0.5
# How many times the norm that He et al., 2015, give them kernels have together in a net that
# explodes by them. No usual initializer gives more than theirs.
_LARGE = 2.0
# What a step takes of the weights, once momentum has set in.
_PULL = 0.02
# Root mean square of the entries of a gradient of which an optimizer takes no more than the
# direction: far above what it adds to its divisor, and not so much that it is remembered for long.
_RMS = 1e-4
# Pulled by more than (1 − √β)²/(1 − β), weights swing through zero with momentum β; so much of it
# is safe.
_DAMPED = 0.8


def is_exploding(context: Context, kernels: Kernels, *, begun: Any, asked: Any) -> Any:
    """Return whether kernels are to be shrunk in this step, a boolean scalar tensor.

    Args:
        context: Of the step, with its loss.
        kernels: Those that may be shrunk.
        begun: Whether they were in the step before.
        asked: Whether it matters; else false is returned, at no cost.
    """
    loss = ops.cast(context.loss, "float32")
    norms, usual = kernels.norms(context), kernels.usual_norms

    def judged() -> Any:
        size = ops.sqrt(ops.sum(ops.square(norms / kernels.largest_usual_norm)))
        share = _proportional(context, kernels, loss)
        at_first = ops.logical_and(share >= _AT_FIRST, size > _LARGE)
        goes_on = ops.logical_and(share >= _STILL, ops.any(norms > usual))
        return ops.where(begun, goes_on, at_first)

    asked = ops.logical_and(asked, ops.isfinite(context.incoming.global_norm))
    return choose(asked, judged, lambda: ops.zeros_like(asked))


def can_shrink(context: Context) -> bool:
    """Whether it is known how a gradient becomes a step, the loss, and one rate for all.

    Adagrad and its like divide by sums of squares that begin at some number, and Lamb takes a share
    of the weights: of what is asked here, they would do next to nothing.
    """
    known = context.moves_by_rate or not context.is_scale_invariant
    return known and context.learning_rate is not None and context.loss is not None


def shrinking(values: Measured, context: Context, kernels: Kernels, condition: Any) -> Measured:
    """Return gradients that shrink large kernels and move nothing else, where a condition holds.

    They are those of ‖w‖², times what makes the step a fixed share of the weights; of optimizers
    that move by the rate whatever the gradient, the rate alone sets it.

    Args:
        values: Gradients for where it does not hold.
        context: Of the step.
        kernels: Those that may be shrunk.
        condition: Boolean scalar tensor.
    """
    norms, weight_norms, weight_norm = (
        kernels.norms(context), context.weight_norms, context.weight_norm
    )  # fmt: skip
    own = set(kernels.places.tolist())

    def pulls() -> Any:
        pull = ops.where(norms > kernels.usual_norms, _pull(context, kernels, weight_norm), 0.0)
        empty = ops.zeros((len(values),), "float32")
        return ops.scatter_update(empty, [[place] for place in kernels.places.tolist()], pull)

    def others() -> list[Any]:
        each = ops.unstack(pulls(), len(values))
        return [
            None if gradient is None else _pulled(gradient, variable, each[place], place in own)
            for place, (gradient, variable) in enumerate(
                zip(context.incoming.values, context.variables, strict=True)
            )
        ]

    return values.replaced(condition, others, lambda: pulls() * weight_norms)


def _pull(context: Context, kernels: Kernels, weight_norm: Any) -> Any:
    """Return what weights are multiplied by to be the gradient that shrinks them."""
    if context.moves_by_rate:
        return _RMS * math.sqrt(kernels.sizes.sum()) / ops.maximum(weight_norm, 1e-30)
    rate = ops.cast(value_of(context.learning_rate), "float32")
    moves, root = rate > 0, math.sqrt(context.momentum)
    share = (1.0 - context.momentum) * min(_PULL, _DAMPED * (1.0 - root) / (1.0 + root))
    return ops.where(moves, share / ops.where(moves, rate, 1.0), 0.0)


def _proportional(context: Context, kernels: Kernels, loss: Any) -> Any:
    """Return the mean over kernels of w·∂L/∂w/L; 0 where the loss is not positive."""
    known = loss > 0
    divisor = ops.where(known, loss, 1.0)
    total = 0.0
    for place in kernels.places.tolist():
        gradient = ops.cast(value_of(context.incoming.values[place]), "float32") / divisor
        weight = ops.cast(value_of(context.variables[place]), "float32")
        total = total + ops.sum(weight * gradient)
    return ops.where(known, total / len(kernels), 0.0)


def _pulled(gradient: Any, variable: Any, pull: Any, is_kernel: bool) -> Any:
    if not is_kernel:
        return ops.zeros_like(gradient)
    return ops.cast(pull * ops.cast(value_of(variable), "float32"), gradient.dtype)
