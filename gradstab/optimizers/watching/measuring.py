"""Measures the steps of an optimizer that is not gradstab's, as the compiled step takes them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from gradstab._nesting import unwrapped
from gradstab._variables import variable_path
from gradstab.keras_hooks.optimizer_state import trained_variables
from gradstab.keras_hooks.substitute import replaced_method
from gradstab.optimizers.compiled.branches import as_written
from gradstab.optimizers.compiled.sparse import split_sparse
from gradstab.optimizers.model.plan import Plan
from gradstab.optimizers.step import reducing
from gradstab.optimizers.telemetry.looking import looked_at
from gradstab.optimizers.telemetry.telemetry import Telemetry
from gradstab.transforms.measured import Measured


class MeasuredOptimizer:
    """Sees the gradients that an optimizer is given, and records them outside of it.

    The optimizer stays the model's, and while a step is traced, its `apply` is one that measures
    and then calls its own. Nothing is added to its variables.

    Args:
        outer: The optimizer of a model: any of Keras', or a loss scale round one.
        strategy: The strategy of the model.

    Attributes:
        telemetry: What is measured.
    """

    def __init__(self, outer: Any, strategy: Any) -> None:
        self._outer = outer
        self._optimizer = unwrapped(outer)
        self._strategy = strategy
        self._plan = Plan()
        self._built = False
        self.telemetry = Telemetry((), (), lambda: None)

    def build(self, variables: Sequence[Any]) -> None:
        """Make the variables behind the telemetry. Calling it again changes nothing."""
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

        with tf.init_scope(), self._strategy.scope():
            steps = add("steps", (), "int", "zeros", "none")
            self.telemetry.build(add, steps, [variable_path(v) for v in self._plan.variables])

    def build_as_built(self) -> None:
        """Make the variables for what the optimizer trains, which is built already."""
        variables = trained_variables(self._optimizer)
        if variables:
            self.build(variables)

    def reset(self) -> None:
        """Forget every step."""
        for variable in self.telemetry.variables:
            variable.assign(ops.zeros(variable.shape, variable.dtype))

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Have the optimizer measure in what is traced, or run eagerly, in this block."""
        scale_loss, apply = self._outer.scale_loss, self._optimizer.apply

        def note_and_scale(loss: Any) -> Any:
            self._plan.note_loss(loss)
            return scale_loss(loss)

        with (
            replaced_method(self._outer, "scale_loss", note_and_scale),
            replaced_method(self._optimizer, "apply", self._measuring(apply)),
        ):
            yield

    def _measuring(self, apply: Callable[..., Any]) -> Callable[..., None]:
        @as_written
        def measure_and_apply(grads: Any, trainable_variables: Any = None) -> None:
            gradients = list(grads)
            variables = trainable_variables
            variables = self._plan.variables if variables is None else list(variables)
            self.build(variables)
            incoming, rows, loss = self._measure(gradients, variables)

            with looked_at(self.telemetry, self._plan.variables, rows, incoming, incoming):
                apply(gradients, trainable_variables)
            self.telemetry.record(incoming, incoming, loss, [])

        return measure_and_apply

    def _measure(
        self, gradients: list[Any], variables: list[Any]
    ) -> tuple[Measured, list[Any], Any | None]:
        plan = self._plan
        loss = plan.take_loss()
        summed, loss = reducing.sum_gradients(
            gradients,
            [tuple(variable.shape) for variable in variables],
            None if loss is None else ops.cast(loss, "float32"),
        )
        values: list[Any] = [None] * len(plan.variables)
        rows: list[Any] = [None] * len(plan.variables)
        for value, index, variable in zip(*split_sparse(summed), variables, strict=True):
            place = plan.position(variable)
            values[place], rows[place] = value, index
        incoming = Measured(values)
        _ = incoming.global_norm
        return incoming, rows, loss
