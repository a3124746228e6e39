"""What an adaptive optimizer makes of its learning rate, weight by weight, and quantiles of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops


def root_of_sum(rate: Any, accumulator: Any, epsilon: float) -> Any:
    """Return η/√(a + ε), the effective rate of Adagrad and RMSprop as Keras has them.

    Args:
        rate: η, a float32 scalar.
        accumulator: a, the sum or mean of squared gradients, float32, of any shape.
        epsilon: ε, inside the root.

    >>> import numpy as np
    >>> round(float(root_of_sum(0.3, np.array(8.9, "float32"), epsilon=0.1)), 4)
    0.1
    """
    return rate / ops.sqrt(accumulator + epsilon)


def bias_corrected(rate: Any, velocity: Any, epsilon: float, beta_2: float, count: Any) -> Any:
    """Return η·√(1 − β₂ᵗ)/(√v + ε), the effective rate of Adam as Keras has it.

    It is what the bias-corrected mean gradient m/(1 − β₁ᵗ) is multiplied by.

    Args:
        rate: η, a float32 scalar.
        velocity: v, the mean of squared gradients without its correction, float32, of any shape.
        epsilon: ε, outside of the root.
        beta_2: β₂.
        count: t, the updates so far, an integer scalar.

    >>> import numpy as np
    >>> after_one_step = np.array((1 - 0.999) * 4.0, "float32")  # of a gradient of 2
    >>> round(float(bias_corrected(0.3, after_one_step, 1e-7, 0.999, 1)), 4)
    0.15
    """
    power = ops.cast(count, "float32") * float(np.log(beta_2)) if beta_2 else -np.inf
    return rate * ops.sqrt(-ops.expm1(power)) / (ops.sqrt(velocity) + epsilon)


def quantiles(values: Any, kept: Any, levels: Sequence[float]) -> Any:
    """Return quantiles of some of the entries of a vector, as `numpy.quantile`'s, by sorting.

    It works in graphs and under XLA, however many entries are kept.

    Args:
        values: Float32 vector of at least one entry.
        kept: Boolean vector: which entries count.
        levels: From 0 to 1.

    Returns:
        A float32 vector, one number for each level; NaN where nothing is kept.

    >>> import numpy as np
    >>> values = np.array([4.0, 1.0, 9.0, 2.0], "float32")
    >>> quantiles(values, np.array([True, True, False, True]), [0.0, 0.5, 0.75]).numpy().tolist()
    [1.0, 2.0, 3.0]
    """
    ordered = ops.sort(ops.where(kept, values, float("inf")))
    count = ops.sum(ops.cast(kept, "int32"))
    places = ops.convert_to_tensor(np.array(levels, "float32")) * ops.cast(
        ops.maximum(count - 1, 0), "float32"
    )
    below = ops.cast(ops.floor(places), "int32")
    above = ops.minimum(below + 1, ops.maximum(count - 1, 0))
    low, high = ops.take(ordered, below), ops.take(ordered, above)
    # Between equal values nothing is to be added: two infinite ones have no difference.
    between = ops.where(low == high, low, low + (high - low) * (places - ops.floor(places)))
    return ops.where(count > 0, between, float("nan"))
