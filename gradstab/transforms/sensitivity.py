"""How much of its weights a net may change in a step, which its sensitivity tells."""

from __future__ import annotations

from typing import Any

from keras import ops

from gradstab.functional.limits import weight_limit
from gradstab.transforms.base import Context

# Share of the ratio to the weights that acts in the first step of a warm-up: between these.
_FIRST_SHARE = 0.003, 0.05
# What a step counts in the warm-up whose gradient is longer than the limit that it leads to, and
# the least that it counts for the strain of the net.
_SLOW = 0.1
# The sensitivity e = ‖g‖·‖w‖/L of a net is by how many per cent, to first order, its loss changes
# with one per cent of its weights. Recurrent nets have 1 to 2, deep ones with ReLU 10 to 40 where
# they begin well, and those that explode 80 and more. Up to the first number the whole ratio to the
# weights acts, and then less, down to a share of it; beyond the second a net counts as strained.
_INSENSITIVE, _SENSITIVE = 4.0, 40.0
_LEAST_SHARE = 0.4


def bound_by_weights(
    norm: Any, context: Context, ratio: Any, rate: Any, progress: Any, begins: Any, steps: int
) -> tuple[Any, Any]:
    """Return the bound on a gradient of this norm that the weights set, and the new progress.

    Args:
        norm: Of the gradient.
        context: Of the step.
        ratio: Of what a step may change to the weights, where the net is insensitive.
        rate: The largest so far.
        progress: Steps of the warm-up that were taken.
        begins: Whether this is the first step, a boolean scalar tensor.
        steps: Length of the warm-up.
    """
    sensitivity = _sensitivity(norm, context)
    share = ops.clip(ops.sqrt(_INSENSITIVE / sensitivity), _LEAST_SHARE, 1.0)
    limit = weight_limit(ratio * share, context.weight_norm, rate)
    strain = ops.maximum(sensitivity / _SENSITIVE, 1.0)
    head_start = steps * ops.maximum(1.0 - strain * norm / limit, 0.0)
    progress = ops.where(begins, head_start, progress)
    bound = _warm(progress, sensitivity, steps) * limit
    # Cast, since of two numbers Keras makes a tensor of its `floatx`.
    pace = ops.cast(ops.where(norm <= limit, 1.0, _SLOW), "float32")
    counted = pace * ops.maximum(1.0 / strain, _SLOW)
    if context.is_scale_invariant:
        counted = ops.where(ops.logical_and(strain > 1, norm > bound), 0.0, counted)
    return bound, ops.minimum(progress + counted, float(steps))


def _sensitivity(norm: Any, context: Context) -> Any:
    """Return by how many per cent a loss changes with one per cent of the weights."""
    if context.loss is None:
        return ops.convert_to_tensor(_SENSITIVE)
    loss, product = ops.cast(context.loss, "float32"), norm * context.weight_norm
    known = ops.logical_and(ops.logical_and(loss > 0, product > 0), ops.isfinite(product))
    return ops.where(known, product / ops.where(known, loss, 1.0), _SENSITIVE)


def _warm(progress: Any, sensitivity: Any, steps: int) -> Any:
    """Return how much of the ratio acts, so far into the warm-up."""
    if steps == 0:
        return 1.0
    least, most = _FIRST_SHARE
    first = ops.clip(most * _INSENSITIVE / sensitivity, least, most)
    return first + (1.0 - first) * progress / steps
