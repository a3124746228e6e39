"""The optimizer that wraps another, and applies each of its steps whole or not at all."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

import keras
from keras import ops

from gradstab._errors import DivergenceError
from gradstab._serialization import register
from gradstab.optimizers import binding, distribution
from gradstab.optimizers.accepted import check_inner_optimizer, check_transforms
from gradstab.optimizers.chain import Chain
from gradstab.optimizers.inner import apply_inner, is_overwritten
from gradstab.optimizers.learning_rate import adjustable_parts, current_rate, set_learning_rate
from gradstab.optimizers.telemetry import Telemetry
from gradstab.transforms.base import Context, Transform, VariableRole
from gradstab.transforms.measured import Measured
from gradstab.transforms.skipping import SkipNonFinite


@dataclasses.dataclass
class _Plan:
    """What the optimizer knows of the model. A plain object: Keras tracks what lists hold."""

    variables: list[Any] = dataclasses.field(default_factory=list)
    index: dict[int, int] = dataclasses.field(default_factory=dict)
    binding: binding.Binding | None = None
    loss: Any | None = None


def _of_inner(name: str) -> property:
    """An attribute that is the inner optimizer's."""

    def read(self: StabilizedOptimizer) -> Any:
        inner = self.__dict__.get("inner_optimizer")
        return None if inner is None else getattr(inner, name)

    def write(self: StabilizedOptimizer, value: Any) -> None:
        inner = self.__dict__.get("inner_optimizer")
        if inner is not None:  # Keras' own `__init__` comes before there is one.
            setattr(inner, name, value)

    return property(read, write, doc=f"`{name}` of the inner optimizer.")


@final
@register
class StabilizedOptimizer(keras.optimizers.Optimizer):
    """Runs transforms round any Keras optimizer, and applies each step whole or not at all.

    Within one step: unscale, sum duplicate sparse rows, measure in float32, run the gradient
    transforms in the order of the list, judge; then apply the inner optimizer once, run the update
    transforms, average and constrain, or leave everything as it was; record. A skipped step moves
    neither weights nor slots, iterations, weight decay, averages or the state of transforms, only
    telemetry and the counts of skips.

    This constructor is strict. `gradstab.stabilize` and the `clip_by_*` functions take optimizers
    as they come: names, configs, wrapped ones, and those with clipping of their own.

    Limits of this version: one replica, no `gradient_accumulation_steps`; both are refused. Under a
    `LossScaleOptimizer` (`mixed_float16`) an overflow is skipped by Keras before it gets here, and
    so is not counted. BatchNorm's moving statistics change in the forward pass, before an optimizer
    can veto, and are not put back.

    Args:
        inner_optimizer: A `keras.optimizers.Optimizer` without clipping of its own.
        transforms: Transforms, in the order in which they run. Each belongs to one optimizer.
        name: Name of the optimizer.
        taken_over: Clipping arguments that a wrapping function moved from the inner optimizer into
            `transforms`; `unwrap` gives them back.

    Raises:
        TypeError: If the inner optimizer or a transform is of another kind.
        ValueError: If they can't work together; the message says why and what to do.

    >>> import keras
    >>> from gradstab import optimizers, transforms
    >>> optimizers.StabilizedOptimizer(
    ...     keras.optimizers.SGD(0.01),
    ...     [transforms.SkipNonFinite(max_consecutive=10), transforms.ClipByNorm(1.0)],
    ... )
    <StabilizedOptimizer: SkipNonFinite(max_consecutive=10) -> ClipByNorm(max_norm=1.0) -> SGD>
    """

    built: bool

    use_ema = _of_inner("use_ema")
    ema_momentum = _of_inner("ema_momentum")
    ema_overwrite_frequency = _of_inner("ema_overwrite_frequency")
    weight_decay = _of_inner("weight_decay")
    loss_scale_factor = _of_inner("loss_scale_factor")
    gradient_accumulation_steps = _of_inner("gradient_accumulation_steps")

    def __init__(
        self,
        inner_optimizer: Any,
        transforms: Sequence[Transform] = (),
        name: str | None = None,
        taken_over: Mapping[str, float] | None = None,
    ) -> None:
        check_inner_optimizer(inner_optimizer)
        transforms = check_transforms(transforms)
        # A callable rate, for a number would make a variable that nothing reads.
        super().__init__(learning_rate=lambda: inner_optimizer.learning_rate, name=name)
        self.inner_optimizer = inner_optimizer
        self.transforms = transforms
        self.taken_over = dict(taken_over or {})
        self._plan = _Plan()
        self._chain = Chain(transforms)
        self._telemetry = Telemetry(self._chain.causes, lambda: self.max_consecutive)
        # Assigning tracks them: the cut of a scheduled rate is saved with the optimizer.
        self._rate_factors = [part.factor_variable for part in adjustable_parts(inner_optimizer)]

    # What Keras and its callbacks read ------------------------------------------------------------

    @property
    def variables(self) -> list[Any]:
        """All variables: this optimizer's own, then the inner optimizer's."""
        return [*self._variables, *self.inner_optimizer.variables]

    @property
    def iterations(self) -> Any:
        """Number of updates applied, which skipped steps are not."""
        return self.inner_optimizer.iterations

    @property
    def learning_rate(self) -> Any:
        """Learning rate of the inner optimizer. Setting it cuts a schedule that is `Adjustable`."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        set_learning_rate(self.inner_optimizer, value)

    @property
    def _trainable_variables(self) -> list[Any]:
        return self._plan.variables if "_plan" in self.__dict__ else []

    @_trainable_variables.setter
    def _trainable_variables(self, value: Any) -> None:
        """Keras' `__init__` sets an empty list; the plan holds the true one."""

    @property
    def _model_variables_moving_average(self) -> Any:
        # `SwapEMAWeights` unwraps one level, and so meets this optimizer inside a loss scale.
        return self.inner_optimizer._model_variables_moving_average

    def scale_loss(self, loss: Any) -> Any:
        """Scale the loss as the inner optimizer does, and note it for the transforms."""
        self._plan.loss = loss
        return self.inner_optimizer.scale_loss(loss)

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """Set the final values of the weights as the inner optimizer does (EMA)."""
        self.inner_optimizer.finalize_variable_values(var_list)

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """Exclude variables from the inner optimizer's weight decay; see Keras."""
        self.inner_optimizer.exclude_from_weight_decay(var_list=var_list, var_names=var_names)

    # Building -------------------------------------------------------------------------------------

    def build(self, variables: Sequence[Any]) -> None:
        """Make all variables, the inner optimizer's too. Calling it again changes nothing."""
        if self.built:
            return
        distribution.refuse_several_replicas()
        variables = list(variables)
        self.inner_optimizer.build(variables)
        self._chain.build(self.add_variable, self._track_variable, variables)
        paths = [binding.variable_path(variable) for variable in variables]
        # Keras' own counter, which the inner optimizer's makes superfluous, counts skips as well.
        self.telemetry.build(self.add_variable, self._iterations, paths)
        plan = self._plan
        plan.variables = variables
        for position, variable in enumerate(variables):
            plan.index[id(variable)] = position
            plan.index.setdefault(id(_resource(variable)), position)
        self.built = True

    def bind(self, model: Any) -> None:
        """Tell the transforms which layer each variable belongs to. Acts from the next trace on.

        `training.train` and gradstab's callbacks call it; in a loop of your own, call it before the
        first step.

        Args:
            model: The built `keras.Model` that this optimizer trains.

        Raises:
            TypeError: If it is no Keras model.
            ValueError: If it is not built.
        """
        self._plan.binding = binding.bind(model)

    # The step -------------------------------------------------------------------------------------

    def apply_gradients(self, grads_and_vars: Iterable[tuple[Any, Any]]) -> Any:
        """Take one step, given pairs of gradient and variable; return `iterations`."""
        gradients, variables = zip(*grads_and_vars, strict=True)
        self.apply(gradients, variables)
        return self.iterations

    @distribution.as_written
    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Take one step: transform the gradients, judge, apply or skip, record.

        Args:
            grads: Gradients, one per variable: tensors, `tf.IndexedSlices` or `None`.
            trainable_variables: Variables they belong to. The first call builds the optimizer on
                them; later it may be left out, or be a part of them.

        Raises:
            ValueError: If the optimizer is not built and no variables are given, if the numbers do
                not match, or if a variable is unknown.
        """
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
            self._step(grads, trainable_variables)

    def _step(self, gradients: list[Any], variables: list[Any]) -> None:
        plan = self._plan
        places = [self._position(variable) for variable in variables]
        unscaled = self._unscale(gradients, variables)
        tensors, rows = distribution.split_sparse(
            [None if is_overwritten(v) else g for g, v in zip(unscaled, variables, strict=True)]
        )
        incoming = Measured(_placed(tensors, places, len(plan.variables)))
        context = Context(
            variables=plan.variables,
            roles=self._roles(),
            rows=_placed(rows, places, len(plan.variables)),
            step=ops.convert_to_tensor(self.inner_optimizer.iterations),
            learning_rate=current_rate(self.inner_optimizer),
            loss=distribution.usable_here(plan.loss),
            consecutive_skips=self.telemetry.consecutive_skips,
            incoming=incoming,
        )
        plan.loss = None

        outgoing, new_states = self._chain.run("gradient", incoming, context)
        context.outgoing = outgoing
        vetoes = self._chain.vetoes(context)
        # Measured here, not inside the branch that applies, since the record needs them too.
        _ = incoming.global_norm, outgoing.global_norm

        transformed = distribution.join_sparse(
            [outgoing.values[place] for place in places], rows, unscaled
        )
        final = [
            gradient if is_overwritten(variable) else value
            for gradient, value, variable in zip(unscaled, transformed, variables, strict=True)
        ]

        def apply() -> None:
            apply_inner(self.inner_optimizer, self._chain, final, variables, context)
            self._chain.store(new_states)

        accept = ops.logical_not(ops.any(ops.stack(vetoes))) if vetoes else None
        distribution.apply_if(accept, apply)
        self.telemetry.record(incoming, outgoing, context.loss, vetoes)

    def _unscale(self, gradients: list[Any], variables: list[Any]) -> list[Any]:
        factor = self.inner_optimizer.loss_scale_factor
        if factor is None:
            return gradients
        return [
            gradient
            if gradient is None or is_overwritten(variable)
            else ops.divide(gradient, factor)
            for gradient, variable in zip(gradients, variables, strict=True)
        ]

    def _position(self, variable: Any) -> int:
        position = self._plan.index.get(id(variable))
        if position is None:
            position = self._plan.index.get(id(_resource(variable)))
        if position is None:
            raise ValueError(
                f"Unknown variable: {binding.variable_path(variable)}. The optimizer was built for "
                f"{len(self._plan.variables)} others. Make a new optimizer for a new set of "
                "variables"
            )
        return position

    def _roles(self) -> list[VariableRole]:
        known = self._plan.binding.roles if self._plan.binding is not None else {}
        return [
            known.get(id(variable)) or binding.unbound_role(variable)
            for variable in self._plan.variables
        ]

    # What it tells --------------------------------------------------------------------------------

    @property
    def telemetry(self) -> Telemetry:
        """What the steps measured: `telemetry.read(since=cursor)`."""
        return self._telemetry

    def raise_if_diverged(self) -> None:
        """Raise if more steps in a row were skipped than allowed, or a bad one was applied.

        For loops of your own: call it once in a while, such as at the end of an epoch, for it waits
        for the device. `telemetry.acknowledge()` lets training go on after the cause is mended.

        Raises:
            DivergenceError: Names the first variable whose gradient was not finite, and the step.
        """
        divergence = self.telemetry.peek().divergence
        if divergence is not None:
            raise DivergenceError(f"Training has diverged. {divergence}")

    @property
    def max_consecutive(self) -> int | None:
        """Steps in a row that may be skipped before training has diverged; `None` if none skips."""
        budgets = [t.max_consecutive for t in self.transforms if isinstance(t, SkipNonFinite)]
        return min(budgets, default=None)

    def __repr__(self) -> str:
        chain = [repr(t) for t in self.transforms if t.stage == "gradient"]
        chain.append(type(self.inner_optimizer).__name__)
        chain += [repr(t) for t in self.transforms if t.stage == "update"]
        return f"<{type(self).__name__}: {' -> '.join(chain)}>"

    # Saving ---------------------------------------------------------------------------------------

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set the values of `variables`, in their order."""
        own = len(self._variables)
        super().set_weights(weights[:own])
        self.inner_optimizer.set_weights(weights[own:])

    def save_own_variables(self, store: Any) -> None:
        """Save this optimizer's own variables; the inner optimizer saves its own."""
        for index, variable in enumerate(self._variables):
            store[str(index)] = ops.convert_to_numpy(variable)

    def load_own_variables(self, store: Any) -> None:
        """Load what `save_own_variables` saved, or warn and load nothing if it does not fit."""
        shapes = [tuple(variable.shape) for variable in self._variables]
        saved = [tuple(store[str(index)].shape) for index in range(len(store.keys()))]
        if shapes != saved:
            # As Keras does: weights are also loaded for inference, and from before the wrapping.
            warnings.warn(
                f"The saved state of optimizer {self.name!r} is skipped: it holds {len(saved)} "
                f"variables, and this one has {len(shapes)}, or their shapes differ. To continue "
                "a run, load it into an optimizer with the same transforms, built on the same "
                f"model: call `optimizer.build(model.trainable_variables)` first. Received: {self}",
                stacklevel=2,
            )
            return
        for index, variable in enumerate(self._variables):
            variable.assign(store[str(index)])

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
        """Make an optimizer from what `get_config` returned."""

        def load(value: Any) -> Any:
            return keras.saving.deserialize_keras_object(value, custom_objects=custom_objects)

        config = dict(config)
        config["inner_optimizer"] = load(config["inner_optimizer"])
        config["transforms"] = [load(transform) for transform in config.get("transforms", [])]
        return cls(**config)


def _resource(variable: Any) -> Any:
    """Return the TensorFlow variable that holds a Keras variable's value, or a bare one itself."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def _placed(values: Sequence[Any], places: Sequence[int], size: int) -> list[Any]:
    """Return a list of `size` entries with each value at its place, and `None` elsewhere."""
    result: list[Any] = [None] * size
    for value, place in zip(values, places, strict=True):
        result[place] = value
    return result
