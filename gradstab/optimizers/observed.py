"""Measures the steps of an optimizer that is not gradstab's, without standing in its place."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import keras
import tensorflow as tf
from keras import ops

from gradstab.optimizers import distribution, substitute
from gradstab.optimizers.binding import variable_path
from gradstab.optimizers.plan import Plan
from gradstab.optimizers.sparse import split_sparse
from gradstab.optimizers.telemetry import Telemetry
from gradstab.transforms.measured import Measured

# By this name `training.train` finds what watches the functions that it compiles itself.
ATTRIBUTE = "gradstab_observer"


@final
class Observer:
    """Sees the gradients that a model's own optimizer gets, in the compiled step, and records them.

    The optimizer stays the model's: while a step is traced, its `apply` is one that measures and
    then calls its own. Nothing is added to its variables, so that what is saved during the watch
    loads where gradstab is not installed.

    Args:
        model: A compiled `keras.Model` whose optimizer is any of Keras'.

    Attributes:
        telemetry: What was measured. Steps that a `LossScaleOptimizer` skips do not get that far.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._outer = model.optimizer
        self._optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        self._plan = Plan()
        self._built = False
        self.telemetry = Telemetry((), lambda: None)
        self._before: Any = None
        if model.built:
            self.build(model.trainable_variables)

    def observes(self, model: Any) -> bool:
        """Whether this is the observer of a model as it is compiled now."""
        return self._model is model and self._outer is model.optimizer

    def build(self, variables: Sequence[Any]) -> None:
        """Make the variables behind the telemetry, outside of the optimizer."""
        if self._built:
            return
        self._built = True
        self._plan.take_in(variables)

        def add(name: str, shape: Any, dtype: str, initializer: str, aggregation: str) -> Any:
            return keras.Variable(
                initializer,
                shape=shape,
                dtype=dtype,
                trainable=False,
                aggregation=aggregation,
                name=name,
            )

        with tf.init_scope(), self._model.distribute_strategy.scope():
            steps = add("steps", (), "int", "zeros", "none")
            self.telemetry.build(add, steps, [variable_path(v) for v in self._plan.variables])

    # While a run lasts ----------------------------------------------------------------------------

    def install(self) -> None:
        """Have the model trace its step anew, watched, from now to `uninstall`."""
        model = self._model
        model.make_train_function()
        self._before = model.train_function
        model.make_train_function(force=True)
        function, history = model.train_function, model.history

        def watched(*arguments: Any) -> Any:
            if model.history is not history:
                # Another run, of which nobody told: the last one ended by an exception.
                self.uninstall()
                return model.train_function(*arguments)
            try:
                with self.attached():
                    return function(*arguments)
            except (StopIteration, tf.errors.OutOfRangeError):
                raise  # The end of an epoch.
            except BaseException:
                self.uninstall()
                raise

        setattr(watched, ATTRIBUTE, self)
        model.train_function = watched

    def uninstall(self) -> None:
        """Give the model back the step that it had."""
        if getattr(self._model.train_function, ATTRIBUTE, None) is self:
            self._model.train_function = self._before

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Have the optimizer measure in what is traced, or run eagerly, in this block."""
        scale_loss, apply = self._outer.scale_loss, self._optimizer.apply

        def note_and_scale(loss: Any) -> Any:
            self._plan.note_loss(loss)
            return scale_loss(loss)

        with (
            substitute.method(self._outer, "scale_loss", note_and_scale),
            substitute.method(self._optimizer, "apply", self._measuring(apply)),
        ):
            yield

    def _measuring(self, apply: Callable[..., Any]) -> Callable[..., None]:
        @distribution.as_written
        def measure_and_apply(grads: Any, trainable_variables: Any = None) -> None:
            gradients = list(grads)
            variables = trainable_variables
            variables = self._plan.variables if variables is None else list(variables)
            self.build(variables)
            incoming, loss = self._measure(gradients, variables)
            apply(gradients, trainable_variables)
            self.telemetry.record(incoming, incoming, loss, [])

        return measure_and_apply

    def _measure(self, gradients: list[Any], variables: list[Any]) -> tuple[Measured, Any | None]:
        plan = self._plan
        loss = plan.take_loss()
        summed, loss = distribution.sum_over_replicas(
            gradients,
            [tuple(variable.shape) for variable in variables],
            None if loss is None else ops.cast(loss, "float32"),
        )
        values: list[Any] = [None] * len(plan.variables)
        for value, variable in zip(split_sparse(summed)[0], variables, strict=True):
            values[plan.position(variable)] = value
        incoming = Measured(values)
        _ = incoming.global_norm
        return incoming, loss
