"""Clips whose bound depends on the variable: on its size, or on its weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, final

from keras import ops

from gradstab._serialization import register
from gradstab._validation import check_float
from gradstab._variables import value_of, variable_path
from gradstab.functional.clipping import clip_factor
from gradstab.functional.units import clip_units, unit_norms
from gradstab.transforms.base import Context, SeedSpec, State, StateSpec, Transform, VariableRole
from gradstab.transforms.bounds import Bound
from gradstab.transforms.measured import Measured
from gradstab.transforms.selection import Patterns, check_patterns, fits, warn_of_idle_patterns

_check_bound = partial(check_float, allow_inf=True)

OUTPUT = "output"
"""What stands for the layers that make the model's output, among the patterns to exclude."""


@final
@register
class ClipByBlockRMS(Transform):
    """Scales each variable's gradient so that the root mean square of its entries is bounded.

    g ← g / max(1, RMS(g)/t) with RMS(g) = √(Σᵢ gᵢ²/n), for the gradient g of each variable with n
    entries. Like `ClipByNorm`, with a bound that does not depend on the number of entries. Absent
    rows of a sparse gradient count as zeros. A gradient with NaN or infinity is passed on
    unchanged.

    Args:
        max_rms: t, in units of a gradient's entry; a positive float, may be infinite. Can be
            assigned during a run.

    Raises:
        TypeError: If the bound is not a number.
        ValueError: If it is zero, negative or NaN.

    Reference: Shazeer and Stern, 2018, Adafactor: Adaptive learning rates with sublinear memory
    cost, which clips the update this way. For gradients, optax has it as `clip_by_block_rms`.

    >>> ClipByBlockRMS(1.0)
    ClipByBlockRMS(max_rms=1.0)
    """

    max_rms = Bound(_check_bound)

    def __init__(self, max_rms: float) -> None:
        self.max_rms = max_rms

    def apply(self, values: Measured, state: State, context: Context) -> tuple[Measured, State]:
        """Scale each gradient to its bound."""
        roots = [math.sqrt(max(1, math.prod(v.shape))) for v in context.variables]
        return values.scaled(clip_factor(values.norms / roots, self.bound("max_rms"))), {}


@final
@register
class AdaptiveGradientClipping(Transform):
    """Keeps each output unit's gradient small against the weights of that unit (AGC).

    g ← g·min(1, λ·max(‖W‖, ε)/‖g‖) for the weights W and the gradient g of each unit. Made for nets
    without normalization, where it allows larger batches and rates. It bounds the relative change
    of each unit, independently of the scale of the loss.

    A unit computes one output of a layer; its norm runs over the kernel's other axes: all but the
    last for Dense, convolution, LSTM and GRU kernels, all but the second to last for transposed
    convolutions, the spatial axes for depthwise ones, the summed axes for EinsumDense and
    attention, one row for Embedding. Each bias or gain vector is one unit. A bound model (by
    `training.train`, gradstab's callbacks, or `optimizer.bind(model)`) says which layer a variable
    belongs to. Without one, a rule by name and rank takes all axes but the last for transposed
    convolutions, depthwise convolutions that are not separable, and EinsumDense.

    The output layer is exempt by default, as in the paper. Only a bound model tells which layer
    that is. Without one, only variables named in `exclude` are exempt.

    Deviation: the paper's code divides by max(‖g‖, 1e-6), which shrinks gradients below 1e-6
    further than to the bound. Here they are scaled to the bound.

    Args:
        clip_factor: λ, the largest ratio of a unit's gradient norm to its weight norm; a positive
            float, may be infinite. Larger batches need smaller values; 0.01 to 0.16 in the paper.
            Can be assigned during a run.
        epsilon: ε, the smallest weight norm used in the ratio, so that weights that begin at zero
            can move; a positive float. Can be assigned during a run.
        exclude: Variables that are not clipped: `"output"` for the layers that compute the model's
            output, a pattern on paths (see `Only`), or a list of these; `None` for no exception.

    Raises:
        TypeError: If an argument has another type.
        ValueError: If a number is zero, negative or NaN, or a pattern empty.

    Reference: Brock, De, Smith and Simonyan, 2021, High-performance large-scale image recognition
    without normalization.

    >>> AdaptiveGradientClipping(exclude=["output", "bias"])
    AdaptiveGradientClipping(clip_factor=0.01, epsilon=0.001, exclude=['output', 'bias'])
    """

    clip_factor = Bound(_check_bound)
    epsilon = Bound(check_float)

    def __init__(
        self, clip_factor: float = 0.01, epsilon: float = 1e-3, exclude: Patterns = OUTPUT
    ) -> None:
        self.clip_factor = clip_factor
        self.epsilon = epsilon
        self.exclude = check_patterns("exclude", exclude or None)

    def state_spec(self, variables: Sequence[Any]) -> dict[str, StateSpec | SeedSpec]:
        """Keep no state; warn about patterns that match no variable."""
        patterns = [pattern for pattern in self._patterns if pattern != OUTPUT]
        warn_of_idle_patterns(
            "exclude", patterns, [variable_path(variable) for variable in variables]
        )
        return {}

    def apply(self, values: Measured, state: State, context: Context) -> tuple[Measured, State]:
        """Scale each unit to its bound."""
        ratio, epsilon = self.bound("clip_factor"), self.bound("epsilon")
        flags: list[Any] = []

        def clip(index: int, gradient: Any) -> Any:
            role, rows = context.roles[index], context.rows[index]
            if self._is_exempt(role):
                return gradient
            weight = value_of(context.variables[index])
            if rows is not None and 0 not in role.unit_axes:
                weight = ops.take(weight, rows, axis=0)
            norms = ops.cast(unit_norms(weight, role.unit_axes), "float32")
            clipped, flag = clip_units(
                gradient, ratio * ops.maximum(norms, epsilon), role.unit_axes
            )
            flags.append(flag)
            return clipped

        changed = values.mapped(clip).values
        clipped = values.clipped
        for flag in flags:
            clipped = ops.logical_or(clipped, flag)
        return Measured(changed, clipped=clipped), {}

    @property
    def _patterns(self) -> list[str]:
        given = self.exclude
        return [given] if isinstance(given, str) else list(given or [])

    def _is_exempt(self, role: VariableRole) -> bool:
        return (OUTPUT in self._patterns and role.is_output) or fits(role.path, self._patterns)
