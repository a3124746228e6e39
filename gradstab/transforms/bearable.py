"""How high a rate the weights bear where a step changes each of them by about the rate."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from keras import ops

from gradstab.transforms.base import Context, VariableRole


def response(context: Context) -> Any:
    """Return what a step of the rate η for every weight changes, at most, in units of η.

    Σ √(n·f)/‖w‖ over the kernels that move, of n weights w with f inputs per unit: if all weights
    of one move in one direction, what it gives changes by η·√(n·f)/‖w‖ of what it gives, and these
    changes add up from layer to layer. A kernel that begins smaller than is usual counts as usual.

    Args:
        context: Of the step.

    Returns:
        A float32 scalar tensor, 0 where no kernel moves.
    """
    places, sizes, inputs = _kernels(context)
    if not len(places):
        return ops.convert_to_tensor(0.0, "float32")
    norms = ops.maximum(ops.take(context.weight_norms, places), _usual_norms(sizes, inputs))
    return ops.sum(np.sqrt(sizes * inputs).astype("float32") / norms)


def usual_norm(context: Context) -> float:
    """Return the norm that the kernels that move usually begin with, all together."""
    _, sizes, inputs = _kernels(context)
    return float(np.linalg.norm(_usual_norms(sizes, inputs)))


def _kernels(context: Context) -> tuple[Any, Any, Any]:
    """Return place among what moves, number of entries and inputs of a unit of each kernel.

    Biases and gains, of any rank, are one unit as a whole, and no kernels.
    """
    rows = [
        (place, math.prod(variable.shape), _inputs(variable, role))
        for place, (variable, role) in enumerate(context.moving)
        if len(role.unit_axes) < len(variable.shape) and math.prod(variable.shape)
    ]
    places, sizes, inputs = np.array(rows, "int64").reshape(-1, 3).T
    return places, sizes, inputs


def _usual_norms(sizes: Any, inputs: Any) -> Any:
    """Return the norms that kernels of so many entries usually begin with.

    The smaller of what LeCun et al., 1998, and Glorot and Bengio, 2010, give entries as variance:
    layers with far more units than inputs, such as those that tell words apart, begin with the
    latter.
    """
    variances = np.minimum(1 / inputs, 2 / (inputs + sizes / inputs))
    return np.sqrt(sizes * variances).astype("float32")


def _inputs(variable: Any, role: VariableRole) -> int:
    """Return the number of inputs of a unit."""
    return max(1, math.prod(variable.shape[axis] for axis in role.unit_axes))
