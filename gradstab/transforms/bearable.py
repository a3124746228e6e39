"""How high a rate the weights bear where a step changes each of them by about the rate."""

from __future__ import annotations

import math
from typing import Any, Final

from keras import ops

from gradstab.functional.limits import rate_limit
from gradstab.transforms.base import Context, VariableRole

# A rate that the weights do not limit: Adam's default, of which any net is expected to bear it.
_LEAST_RATE: Final = 1e-3
# As the weights grow they bear a higher rate, but too high a rate makes them grow: this many times
# their first norm counts at most, or the usual one where they begin smaller.
_MOST_GROWTH: Final = 1.5


def bearable_rate(ratio: Any, first_norm: Any, context: Context) -> Any:
    """Return the highest rate that the weights bear, a float32 scalar tensor.

    At that rate, a step that moves all weights in one direction changes what layers give by a share
    of what they give.

    Args:
        ratio: The share, a float32 scalar.
        first_norm: Norm of the weights at the first step, a float32 scalar.
        context: Of the step.
    """
    sizes = [(math.prod(v.shape), _inputs(v, role), len(v.shape)) for v, role in context.moving]
    usual_norm = math.sqrt(sum(_usual_square(size, f) for size, f, rank in sizes if rank > 1))
    most = _MOST_GROWTH * ops.maximum(first_norm, usual_norm)
    total = sum(size * inputs for size, inputs, _ in sizes)
    return rate_limit(ratio, ops.minimum(context.weight_norm, most), total, _LEAST_RATE)


def _usual_square(size: int, inputs: int) -> float:
    """Return the square of the norm that a kernel of so many entries usually begins with.

    The smaller of what LeCun et al., 1998, and Glorot and Bengio, 2010, give entries as variance:
    layers with far more units than inputs, such as those that tell words apart, begin with the
    latter, and embeddings smaller still.
    """
    units = size / inputs
    return size * min(1.0 / inputs, 2.0 / (inputs + units)) if size else 0.0


def _inputs(variable: Any, role: VariableRole) -> int:
    """Return the number of inputs of a unit, 1 for a vector."""
    shape = variable.shape
    return max(1, math.prod(shape[axis] for axis in role.unit_axes)) if len(shape) > 1 else 1
