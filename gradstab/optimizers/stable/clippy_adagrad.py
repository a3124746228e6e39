"""Adagrad that changes no weight by more than a share of it."""

from __future__ import annotations

from typing import Any, final

import keras
from keras import ops

from gradstab._serialization import register
from gradstab._validation import check_float
from gradstab.keras_hooks.optimizer_state import SUMS_OF_SQUARES, slot
from gradstab.optimizers.compiled.sparse import is_sparse, map_values, with_rows_once
from gradstab.optimizers.traits import ADAGRAD, TRAITS


@final
@register
class ClippyAdagrad(keras.optimizers.Adagrad):
    """Adagrad with Clippy: one factor per variable keeps every weight's change within bounds.

    Δw = η·g/√(v + ε) with the accumulator v as it was before this step, and w ← w − s·Δw with the
    largest s ≤ 1 for which everywhere s·|Δw| ≤ λ_rel·|w| + λ_acc/√(v + ε) + λ_abs. Then v ← v + g².
    Made for ranking and recommendation models with large embeddings, at rates at which Adagrad
    diverges: when the loss suddenly changes, the weights can't run away in one step.

    One factor serves the whole variable, so that the direction is kept. One weight near zero with a
    large gradient therefore slows all weights of its variable; `absolute_threshold` limits that. A
    zero weight moves by λ_abs at most: raise it for variables that begin at zero. Entries whose
    change is zero are left out, and so are the absent rows of a sparse gradient. A sparse gradient
    stays sparse, with duplicate rows summed.

    Deviation from Keras' Adagrad: the accumulator is read before this step's gradient is added, as
    by Clippy's authors. So the first steps after a jump of the gradient are longer, until bounded.
    In half precision the factor is computed in float32.

    Args:
        learning_rate: η, a float, a schedule or a callable.
        initial_accumulator_value: First value of v, a positive float.
        variable_relative_threshold: λ_rel, a float of at least 0.
        accumulator_relative_threshold: λ_acc, a float of at least 0.
        absolute_threshold: λ_abs, in units of a weight; a float of at least 0.
        epsilon: ε, a float of at least 0.
        weight_decay: As in Keras; it is not bounded.
        clipnorm, clipvalue, global_clipnorm: As in Keras.
        use_ema, ema_momentum, ema_overwrite_frequency: As in Keras.
        loss_scale_factor, gradient_accumulation_steps: As in Keras.
        name: Name of the optimizer.

    Raises:
        TypeError: If an argument has another type.
        ValueError: If a number is out of its range, or all three thresholds are zero.

    Reference: Tang et al., 2023, Improving training stability for multitask ranking models in
    recommender systems (KDD).

    >>> ClippyAdagrad(0.1).variable_relative_threshold
    0.1
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        initial_accumulator_value: float = 0.1,
        variable_relative_threshold: float = 0.1,
        accumulator_relative_threshold: float = 0.0,
        absolute_threshold: float = 1e-7,
        epsilon: float = 1e-7,
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None,
        name: str | None = None,
    ) -> None:
        thresholds = {
            "variable_relative_threshold": variable_relative_threshold,
            "accumulator_relative_threshold": accumulator_relative_threshold,
            "absolute_threshold": absolute_threshold,
        }
        checked = {
            argument: check_float(argument, value, include_minimum=True)
            for argument, value in thresholds.items()
        }
        if not any(checked.values()):
            raise ValueError(
                "One of `variable_relative_threshold`, `accumulator_relative_threshold` and "
                "`absolute_threshold` must be positive, or nothing could move. Received: all 0"
            )
        super().__init__(
            learning_rate=learning_rate,
            initial_accumulator_value=check_float(
                "initial_accumulator_value", initial_accumulator_value
            ),
            epsilon=check_float("epsilon", epsilon, include_minimum=True),
            weight_decay=weight_decay,
            clipnorm=clipnorm,
            clipvalue=clipvalue,
            global_clipnorm=global_clipnorm,
            use_ema=use_ema,
            ema_momentum=ema_momentum,
            ema_overwrite_frequency=ema_overwrite_frequency,
            loss_scale_factor=loss_scale_factor,
            gradient_accumulation_steps=gradient_accumulation_steps,
            name=name,
        )
        self.variable_relative_threshold = checked["variable_relative_threshold"]
        self.accumulator_relative_threshold = checked["accumulator_relative_threshold"]
        self.absolute_threshold = checked["absolute_threshold"]

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Take one bounded step for one variable."""
        gradient = with_rows_once(gradient)
        accumulator = slot(self, SUMS_OF_SQUARES, variable)
        if is_sparse(gradient):
            wide = ops.cast(gradient.values, "float32")
            weight, before = (
                ops.cast(ops.take(each, gradient.indices, axis=0), "float32")
                for each in (variable, accumulator)
            )
        else:
            wide = ops.cast(gradient, "float32")
            weight, before = ops.cast(variable, "float32"), ops.cast(accumulator, "float32")
        root = ops.rsqrt(before + self.epsilon)
        change = ops.cast(learning_rate, "float32") * wide * root
        change = change * self._factor(change, weight, root)

        def in_form(values: Any) -> Any:
            cast = ops.cast(values, variable.dtype)
            return map_values(lambda _: cast, gradient) if is_sparse(gradient) else cast

        self.assign_add(accumulator, in_form(ops.square(wide)))
        self.assign_sub(variable, in_form(change))

    def _factor(self, change: Any, weight: Any, root: Any) -> Any:
        bound = (
            self.variable_relative_threshold * ops.abs(weight)
            + self.accumulator_relative_threshold * root
            + self.absolute_threshold
        )
        length = ops.abs(change)
        exceeds = length > bound
        shares = ops.where(exceeds, bound / ops.where(exceeds, length, 1.0), 1.0)
        return ops.min(shares) if 0 not in shares.shape else 1.0

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal optimizer."""
        config: dict[str, Any] = super().get_config()
        for argument in (
            "variable_relative_threshold",
            "accumulator_relative_threshold",
            "absolute_threshold",
        ):
            config[argument] = getattr(self, argument)
        return config


TRAITS[ClippyAdagrad] = ADAGRAD
