"""Transforms that change the distribution of a gradient's entries, not its length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

from keras import ops

from gradstab._serialization import register
from gradstab._validation import check_float, check_int
from gradstab._variables import value_of
from gradstab.functional.noise import counter_normal
from gradstab.functional.norms import widen
from gradstab.functional.units import centered
from gradstab.transforms.base import Context, SeedSpec, State, StateSpec, Transform, VariableRole
from gradstab.transforms.bounds import Bound
from gradstab.transforms.measured import Measured


@final
@register
class CentralizeGradients(Transform):
    """Subtracts the mean from the gradient of each output unit.

    g ← g − mean(g) over the axes of a unit, which are those of `AdaptiveGradientClipping`: for a
    Dense or convolution kernel all but the last. The sum of each unit's weights stays constant,
    which regularizes. Training is often somewhat faster and generalization somewhat better, mostly
    in convolutional nets. List it before the clips.

    Variables without an axis for the outputs stay as they are: scalars, vectors, and the biases and
    gains of any rank. Each row of an `Embedding` is a unit, so that a sparse gradient stays sparse.
    A sparse gradient stays as it is where a unit runs across rows, since its mean would fill every
    row.

    Reference: Yong, Huang, Hua and Zhang, 2020, Gradient centralization: A new optimization
    technique for deep neural networks.

    >>> CentralizeGradients()
    CentralizeGradients()
    """

    def apply(self, values: Measured, state: State, context: Context) -> tuple[Measured, State]:
        """Center each unit that has several entries."""

        def center(index: int, gradient: Any) -> Any:
            axes, rank = context.roles[index].unit_axes, len(gradient.shape)
            across_rows = context.rows[index] is not None and 0 in axes
            return gradient if across_rows or not 0 < len(axes) < rank else centered(gradient, axes)

        return values.mapped(center), {}


@final
@register
class AddGradientNoise(Transform):
    """Adds normal noise to every entry of the gradient; the noise fades as training goes on.

    g ← g + z with z ~ N(0, η/(1 + t)^γ) at step t, the number of updates applied so far; η is a
    variance, so the noise has the standard deviation √η at first. It helps very deep nets to leave
    a bad start and to cross plateaus. List it after the clips, as in the paper: the noise has a
    fixed size.

    The noise is a function of the seed, the step, the variable and the entry. So the noise is added
    once, to the sum over the replicas. Eager mode, graphs and XLA agree. The step after a skipped
    one gets the same noise. A resumed run gets the noise that it would have had. The seed is saved
    with the optimizer.

    Deviations: a variable whose whole gradient is zero gets no noise. Neither do rows of an
    `Embedding` with a gradient of zero, sparse or dense. So absent rows stay where they are, and a
    sparse gradient stays sparse.

    Args:
        variance: η, in squared units of a gradient's entry; a float of at least 0. 0.01, 0.3 and
            1.0 in the paper. Can be assigned during a run.
        decay: γ, a float of at least 0; 0 for noise that does not fade.
        seed: Integer; `None` draws one when the optimizer is built (reproducible after
            `keras.utils.set_random_seed`).

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If one is negative or NaN.

    Reference: Neelakantan et al., 2015, Adding gradient noise improves learning for very deep
    networks.

    >>> AddGradientNoise(variance=0.01, seed=7)
    AddGradientNoise(variance=0.01, decay=0.55, seed=7)
    """

    variance = Bound(lambda name, value: check_float(name, value, include_minimum=True))

    def __init__(
        self, variance: float = 0.01, decay: float = 0.55, seed: int | None = None
    ) -> None:
        self.variance = variance
        self.decay = check_float("decay", decay, include_minimum=True)
        self.seed = None if seed is None else check_int("seed", seed, minimum=0)

    def state_spec(self, variables: Sequence[Any]) -> dict[str, StateSpec | SeedSpec]:
        """Keep the seed."""
        return {"stream": SeedSpec(self.seed)}

    def apply(self, values: Measured, state: State, context: Context) -> tuple[Measured, State]:
        """Add noise wherever there is a gradient."""
        # The seed alone: the generator's own count moves with every draw, skipped steps included.
        seed = value_of(state["stream"].state)[0]
        time = ops.cast(context.step, "float32")
        deviation = ops.sqrt(self.bound("variance") * ops.power(1.0 + time, -self.decay))

        # By its place among those that have a gradient: the others count for nothing.
        present = [index for index, value in enumerate(values.values) if value is not None]

        def add(index: int, gradient: Any) -> Any:
            rows, wide = context.rows[index], widen(gradient)
            places = _numbers(gradient, rows)
            noise = ops.cast(
                deviation * counter_normal([seed, context.step, present.index(index)], places),
                wide.dtype,
            )
            there = _takes_part(wide, rows, context.roles[index])
            return ops.cast(ops.where(there, wide + noise, wide), gradient.dtype)

        return values.mapped(add), {}


def _numbers(gradient: Any, rows: Any | None) -> Any:
    """Return the number of each entry in the whole variable, in the gradient's shape."""
    if rows is None:
        size = math.prod(gradient.shape)
        return ops.reshape(ops.arange(size, dtype="int64"), gradient.shape)
    columns = math.prod(gradient.shape[1:])
    numbers = ops.expand_dims(ops.cast(rows, "int64"), 1) * columns
    return ops.reshape(numbers + ops.arange(columns, dtype="int64"), ops.shape(gradient))


def _takes_part(gradient: Any, rows: Any | None, role: VariableRole) -> Any:
    """Whether a gradient, or each of its rows, is anything but zero."""
    rank = len(gradient.shape)
    along = tuple(range(1, rank))
    if rows is None and (not along or role.unit_axes != along):
        return ops.any(gradient != 0)
    return ops.any(gradient != 0, axis=along, keepdims=True)
