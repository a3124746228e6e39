"""The optimizer that wraps another, and applies each step whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

import keras

from gradstab._errors import DivergenceError
from gradstab._serialization import register
from gradstab._variables import variable_path
from gradstab.keras_hooks.loss_scale import hand_over_to
from gradstab.keras_hooks.optimizer_state import counter
from gradstab.keras_hooks.wrapper import Wrapper
from gradstab.optimizers.accepted import (
    check_inner_optimizer,
    check_strategy,
    check_transforms,
    no_clipping,
)
from gradstab.optimizers.compiled.branches import as_written
from gradstab.optimizers.compiled.building import ahead_of_the_trace
from gradstab.optimizers.model.plan import Plan
from gradstab.optimizers.step.accumulation import window_size
from gradstab.optimizers.step.chain import Chain
from gradstab.optimizers.step.learning_rate import (
    adjustable_parts,
    rate_and_momentum,
    set_learning_rate,
)
from gradstab.optimizers.step.loss_scale import LossScale
from gradstab.optimizers.step.step import Step
from gradstab.optimizers.telemetry.telemetry import Telemetry
from gradstab.transforms.base import Transform
from gradstab.transforms.outliers import SkipOutliers
from gradstab.transforms.selection import innermost
from gradstab.transforms.skipping import SkipNonFinite


@final
@register
class StabilizedOptimizer(Wrapper):
    """Wraps any Keras optimizer, runs transforms, and applies each step whole or not at all.

    One step: unscale, sum over the replicas, accumulate, sum duplicate sparse rows, measure in
    float32, run the transforms on the gradients, decide. If accepted: apply the inner optimizer
    once, run the transforms on the updates, average and constrain. Otherwise: leave everything as
    it was. Then record.

    - A skipped step changes no weight, slot, iteration, average or transform state, nor, in a bound
      model (`bind`), BatchNorm's moving statistics. Telemetry, loss scale and seeds do.
    - Under a `tf.distribute` strategy each replica passes its share of the gradient, and the sum is
      measured and clipped.
    - With `gradient_accumulation_steps` of the inner optimizer, a window counts as one step: its
      mean is measured and clipped, and one bad micro-batch makes the whole window skip.
    - A `LossScaleOptimizer` that wraps it (`mixed_float16`) delegates the step to it: an overflow
      on any replica is skipped on all and counted, and the scale stays within [1, 2^24].

    The constructor is strict: `gradstab.stabilize` takes optimizers that clip or are wrapped.

    Args:
        inner_optimizer: A `keras.optimizers.Optimizer` without clipping of its own.
        transforms: Transforms, in the order in which they run. Each belongs to one optimizer.
        name: Name of the optimizer.
        taken_over: Clipping arguments that a wrapping function moved from the inner optimizer into
            `transforms`; `unwrap` gives them back.

    Raises:
        TypeError: If the inner optimizer or a transform has another type.
        ValueError: If they can't work together; the message says why and what to do.

    >>> import keras
    >>> from gradstab import optimizers, transforms
    >>> optimizers.StabilizedOptimizer(
    ...     keras.optimizers.SGD(0.01),
    ...     [transforms.SkipNonFinite(max_consecutive=10), transforms.ClipByNorm(1.0)],
    ... )
    <StabilizedOptimizer: SkipNonFinite(max_consecutive=10) -> ClipByNorm(max_norm=1.0) -> SGD>
    """

    clipnorm = no_clipping("clipnorm")
    clipvalue = no_clipping("clipvalue")
    global_clipnorm = no_clipping("global_clipnorm")

    def __init__(
        self,
        inner_optimizer: Any,
        transforms: Sequence[Transform] = (),
        name: str | None = None,
        taken_over: Mapping[str, float] | None = None,
    ) -> None:
        check_inner_optimizer(inner_optimizer)
        transforms = check_transforms(transforms)
        hand_over_to(StabilizedOptimizer)
        super().__init__(inner_optimizer, name)
        self.transforms = transforms
        self.taken_over = dict(taken_over or {})
        self._plan = Plan()
        self._chain = Chain(transforms)
        self._telemetry = Telemetry(
            self._chain.causes,
            self._chain.limits,
            lambda: self.max_consecutive,
            lambda: rate_and_momentum(inner_optimizer),
        )
        self._step = Step(inner_optimizer, self._chain, self._telemetry, self._plan)
        # Assigning tracks them: the cut of a scheduled rate is saved with the optimizer.
        self._rate_factors = [part.factor_variable for part in adjustable_parts(inner_optimizer)]

    # What Keras and its callbacks read ------------------------------------------------------------

    @property
    def learning_rate(self) -> Any:
        """Learning rate of the inner optimizer. Setting it cuts a schedule that is `Adjustable`."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        set_learning_rate(self.inner_optimizer, value)

    def trained(self) -> list[Any]:
        """Return the variables that this optimizer was built for; none before."""
        return self._plan.variables if "_plan" in self.__dict__ else []

    def scale_loss(self, loss: Any) -> Any:
        """Scale the loss as the inner optimizer does, and note it for the transforms."""
        self.note_loss(loss)
        return self.inner_optimizer.scale_loss(loss)

    def note_loss(self, loss: Any) -> None:
        """Note the loss of the step for the transforms; an outer loss scale calls it."""
        self._plan.note_loss(loss)

    # Building -------------------------------------------------------------------------------------

    def build(self, variables: Sequence[Any]) -> None:
        """Make all variables, the inner optimizer's too. Calling it again changes nothing."""
        if self.built:
            return
        check_strategy()
        variables = list(variables)
        paths = [variable_path(variable) for variable in variables]
        with ahead_of_the_trace(variables):
            self.inner_optimizer.build(variables)
            window_size(self.inner_optimizer)  # A MultiOptimizer may know its parts only now.
            self._chain.build(self.add_variable, self.track, variables)
            # Keras' own counter is superfluous, for the inner one counts; it counts skips as well.
            self.telemetry.build(self.add_variable, counter(self), paths)
        self._plan.take_in(variables)
        self.built = True

    def bind(self, model: Any) -> bool:
        """Tell the optimizer its model. Takes effect from the next trace on.

        The transforms then know which layer each variable belongs to, and a skipped step restores
        what its forward pass changed: BatchNorm's moving statistics. `training.train` and
        gradstab's callbacks call it; in a loop of your own, call it before the first step, and
        again after weights were loaded.

        Args:
            model: The built `keras.Model` that this optimizer trains.

        Returns:
            Whether steps traced before have to be traced again to use it.

        Raises:
            TypeError: If it is no Keras model.
            ValueError: If it is not built.
        """
        return self._plan.bind(model)

    def share(self, other: StabilizedOptimizer) -> bool:
        """Copy the binding of another optimizer of the same model; return as `bind` does."""
        return self._plan.share(other._plan)

    @property
    def applied_nothing(self) -> bool:
        """Whether no step of the bound model was applied since its metrics were reset."""
        return self._plan.forward_state.applied_nothing

    # The step -------------------------------------------------------------------------------------

    def apply_gradients(self, grads_and_vars: Iterable[tuple[Any, Any]]) -> Any:
        """Take one step, given pairs of gradient and variable; return `iterations`."""
        gradients, variables = zip(*grads_and_vars, strict=True)
        self.apply(gradients, variables)
        return self.iterations

    @as_written
    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Take one step: transform the gradients, decide, apply or skip, record.

        Args:
            grads: Gradients, one per variable: tensors, `tf.IndexedSlices` or `None`.
            trainable_variables: The variables of the gradients. The first call builds the optimizer
                on them; later calls may omit it, or pass a part of them.

        Raises:
            ValueError: If the optimizer is not built and no variables are given, if the numbers do
                not match, or if a variable is unknown.
        """
        self._apply(grads, trainable_variables)

    def apply_scaled(
        self, loss_scale_optimizer: Any, grads: Sequence[Any], trainable_variables: Any = None
    ) -> None:
        """Take one step with gradients that carry a dynamic loss scale, and update the scale.

        Keras' `LossScaleOptimizer` calls it when it wraps this optimizer. A step that overflows on
        any replica is skipped on all and counted.
        """
        self._apply(grads, trainable_variables, loss_scale_optimizer)

    def _apply(
        self, grads: Sequence[Any], trainable_variables: Any, loss_scale_optimizer: Any = None
    ) -> None:
        grads = list(grads)
        if not grads:
            return
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
            self.build(trainable_variables)
        elif not self.built:
            raise ValueError(
                "`apply` without `trainable_variables` needs a built optimizer. Call "
                "`optimizer.build(model.trainable_variables)` first"
            )
        else:
            trainable_variables = self._plan.variables
        if len(grads) != len(trainable_variables):
            raise ValueError(
                "`grads` must hold one gradient per variable. Received: "
                f"{len(grads)} gradients for {len(trainable_variables)} variables"
            )
        with keras.name_scope(self.name):
            scale = None if loss_scale_optimizer is None else LossScale(loss_scale_optimizer)
            self._step.take(grads, trainable_variables, scale)

    # What it tells --------------------------------------------------------------------------------

    @property
    def telemetry(self) -> Telemetry:
        """Measurements of the steps: `telemetry.read(since=cursor)`."""
        return self._telemetry

    def raise_if_diverged(self) -> None:
        """Raise if more steps in a row were skipped than allowed, or a bad one was applied.

        For loops of your own: call it now and then, such as at the end of an epoch, since it waits
        for the device. `telemetry.acknowledge()` lets training go on after the cause is fixed.

        Raises:
            DivergenceError: Names the step and the damage, weights before gradients.
        """
        divergence = self.telemetry.peek().divergence
        if divergence is not None:
            damage = self._plan.first_damage(self.inner_optimizer.variables)
            told = divergence.told(None if damage is None else str(damage))
            raise DivergenceError(f"Training has diverged. {told}")

    @property
    def max_consecutive(self) -> int | None:
        """Steps in a row that may be skipped before training has diverged; `None` if none skips."""
        inside = [innermost(transform) for transform in self.transforms]
        budgets = [t.max_consecutive for t in inside if isinstance(t, SkipNonFinite)]
        # Of finite steps `SkipOutliers` skips no more than these in a row: beyond are others.
        budgets = budgets or [t.max_consecutive for t in inside if isinstance(t, SkipOutliers)]
        return min(budgets, default=None)

    def __repr__(self) -> str:
        chain = self._chain.described(type(self.inner_optimizer).__name__)
        return f"<{type(self).__name__}: {' -> '.join(chain)}>"

    # Saving ---------------------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal optimizer."""
        serialize = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "inner_optimizer": serialize(self.inner_optimizer),
            "transforms": [serialize(transform) for transform in self.transforms],
            "taken_over": dict(self.taken_over),
        }

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> StabilizedOptimizer:
        """Make an optimizer from the dictionary that `get_config` returned."""

        def load(value: Any) -> Any:
            return keras.saving.deserialize_keras_object(value, custom_objects=custom_objects)

        config = dict(config)
        config["inner_optimizer"] = load(config["inner_optimizer"])
        config["transforms"] = [load(transform) for transform in config.get("transforms", [])]
        return cls(**config)
