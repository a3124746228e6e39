"""The base of an optimizer that stands round another, as Keras and its callbacks read it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops


def _of_inner(name: str) -> property:
    """An attribute that is the inner optimizer's."""

    def read(self: Wrapper) -> Any:
        inner = self.__dict__.get("inner_optimizer")
        return None if inner is None else getattr(inner, name)

    def write(self: Wrapper, value: Any) -> None:
        inner = self.__dict__.get("inner_optimizer")
        if inner is not None:  # Keras' own `__init__` comes before there is one.
            setattr(inner, name, value)

    return property(read, write, doc=f"`{name}` of the inner optimizer.")


class Wrapper(keras.optimizers.Optimizer):
    """What Keras asks of an optimizer, answered by the one inside. Abstract.

    Args:
        inner_optimizer: The optimizer inside.
        name: Name of the optimizer.
    """

    built: bool

    use_ema = _of_inner("use_ema")
    ema_momentum = _of_inner("ema_momentum")
    ema_overwrite_frequency = _of_inner("ema_overwrite_frequency")
    weight_decay = _of_inner("weight_decay")
    loss_scale_factor = _of_inner("loss_scale_factor")
    gradient_accumulation_steps = _of_inner("gradient_accumulation_steps")

    def __init__(self, inner_optimizer: Any, name: str | None = None) -> None:
        # A callable rate, for a number would make a variable that nothing reads.
        super().__init__(learning_rate=lambda: inner_optimizer.learning_rate, name=name)
        self.inner_optimizer = inner_optimizer

    @property
    def variables(self) -> list[Any]:
        """All variables: this optimizer's own, then the inner optimizer's."""
        return [*self._variables, *self.inner_optimizer.variables]

    @property
    def optimizers(self) -> list[Any]:
        """The optimizers in an inner `MultiOptimizer`, whose rates callbacks set one by one.

        Another inner optimizer has no such attribute, and then this one has none either.
        """
        parts: list[Any] = self.inner_optimizer.optimizers
        return parts

    @property
    def iterations(self) -> Any:
        """Number of updates applied, which skipped steps are not."""
        return self.inner_optimizer.iterations

    @property
    def _trainable_variables(self) -> list[Any]:
        return self.trained()

    @_trainable_variables.setter
    def _trainable_variables(self, value: Any) -> None:
        """Keras' `__init__` sets an empty list; `trained` gives the true one."""

    def trained(self) -> list[Any]:
        """Return the variables that this optimizer was built for; none before."""
        raise NotImplementedError

    @property
    def _model_variables_moving_average(self) -> Any:
        # `SwapEMAWeights` unwraps one level, and so meets this optimizer inside a loss scale.
        return self.inner_optimizer._model_variables_moving_average

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """Set the final values of the weights as the inner optimizer does (EMA)."""
        self.inner_optimizer.finalize_variable_values(var_list)

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """Exclude variables from the inner optimizer's weight decay; see Keras."""
        self.inner_optimizer.exclude_from_weight_decay(var_list=var_list, var_names=var_names)

    def track(self, variable: Any) -> None:
        """Own a variable that was made elsewhere: it is listed and saved with this optimizer's."""
        self._track_variable(variable)

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
