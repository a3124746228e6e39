"""Watches the steps of a model's optimizer, gradstab's or not, without standing in its place."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import keras
import tensorflow as tf
from keras import ops

from gradstab._substitute import replaced_method
from gradstab.optimizers import distribution
from gradstab.optimizers.accumulation import window_size
from gradstab.optimizers.activations import Activations
from gradstab.optimizers.binding import variable_path
from gradstab.optimizers.find import stabilized_optimizer
from gradstab.optimizers.packed import pack, unpack
from gradstab.optimizers.plan import Plan
from gradstab.optimizers.sampling import Sampler, is_due, run_sampled
from gradstab.optimizers.sparse import split_sparse
from gradstab.optimizers.telemetry import Telemetry
from gradstab.transforms.measured import Measured

# By this name `training.train` finds what watches the functions that it compiles itself.
ATTRIBUTE = "gradstab_observer"
# Under this name the scalars of a step leave the compiled function.
_PACKED = "gradstab_scalars"


@final
class Observer:
    """Has the steps of a model sampled and told in its logs, and those of any optimizer measured.

    A gradstab optimizer measures by itself. Of another the gradients are seen in the compiled step:
    the optimizer stays the model's, and while a step is traced, its `apply` is one that measures
    and then calls its own. Nothing is added to its variables, so that what is saved during the
    watch loads where gradstab is not installed.

    Args:
        model: A compiled `keras.Model`.
        sampler: Looks closer at every n-th step.
        activations: Notes what the layers put out, or `None`.
        lock: Held while steps run; who reads meanwhile from another thread holds it too.

    Attributes:
        telemetry: What is measured. Steps that a `LossScaleOptimizer` skips round an optimizer
            that is not gradstab's do not get that far.
        sampler: As given.
        calls: How often `fit` has called the watched step, which may run many steps in a call.
    """

    def __init__(
        self,
        model: Any,
        sampler: Sampler,
        activations: Activations | None = None,
        lock: contextlib.AbstractContextManager[Any] | None = None,
    ) -> None:
        self.sampler = sampler
        self._lock = lock or contextlib.nullcontext()
        self._model = model
        self._activations = activations
        self._outer = model.optimizer
        self._optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        self._own = stabilized_optimizer(model)
        self._plan = Plan()
        self._built = self._own is not None
        self.telemetry = Telemetry((), lambda: None) if self._own is None else self._own.telemetry
        self.calls = 0
        self._next: int | None = None
        self._before: Any = None
        self._history: Any = None
        self._names: tuple[str, ...] = ()
        self._others: list[Observer] = []
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
        steps = self.telemetry.peek().cursor
        self.sampler.begin(steps)
        # Variables that are made while a step is traced have it traced once more.
        self.telemetry.prepare(self.sampler)
        model.make_train_function()
        other = getattr(model.train_function, ATTRIBUTE, None)
        if other is None or other._history is not model.history:
            if other is not None:  # The last run ended by an exception.
                other.uninstall()
                model.make_train_function()
            self._before, self._others = model.train_function, []
        else:
            self._before, self._others = other._before, [other, *other._others]
        self._history = history = model.history
        self._next = steps + 1 if self._knows_steps() else None
        function = unsampled = self._function(sampling=True)
        if self._next is not None:
            unsampled = self._function(sampling=False)

        def watched(*arguments: Any) -> Any:
            if model.history is not history:
                # Another run, of which nobody told: the last one ended by an exception.
                self.uninstall()
                return model.make_train_function()(*arguments)
            try:
                with self._lock:
                    if self._may_sample():
                        with self._around_calls(sampling=True):
                            logs = function(*arguments)
                    else:
                        with self._around_calls(sampling=False):
                            logs = unsampled(*arguments)
                    self.calls += 1
                    if self._next is not None:
                        self._next += 1
                    return self._unpacked(logs)
            except (StopIteration, tf.errors.OutOfRangeError):
                raise  # The end of an epoch.
            except BaseException:
                self.uninstall()
                raise

        setattr(watched, ATTRIBUTE, self)
        model.train_function = watched

    def uninstall(self) -> None:
        """Give the model back the step that it had."""
        current = getattr(self._model.train_function, ATTRIBUTE, None)
        if current is self or (current is not None and self in current._others):
            self._model.train_function = self._before

    def settle(self, cursor: int) -> None:
        """Compare the count of steps with that of the device; from then on, trust it or not.

        Args:
            cursor: The steps that the telemetry counts.
        """
        if self._next != cursor + 1:
            self._next = None

    def _knows_steps(self) -> bool:
        """Whether each call is one step of the telemetry, as far as can be known beforehand.

        The condition that leaves the sampler out on most steps is handed every gradient and
        variable for it, which alone takes a step of many small ones a tenth longer. Where it is
        known here which calls hold no sampled step, those get a function without a sampler.
        """
        model = self._model
        if model.steps_per_execution != 1 or model.run_eagerly or self.sampler.every_n_steps == 1:
            return False
        if self._own is None:  # A loss scale round another optimizer skips steps by itself.
            return self._outer is self._optimizer
        return window_size(self._own.inner_optimizer) == 1

    def _may_sample(self) -> bool:
        step = self._next
        return step is None or any(each.sampler.falls_on(step) for each in (self, *self._others))

    @contextlib.contextmanager
    def attached(self, *, sampling: bool = True) -> Iterator[None]:
        """Have the optimizer measure in what is traced, or run eagerly, in this block.

        Args:
            sampling: Whether samples may be due.
        """
        with contextlib.ExitStack() as stack:
            for other in reversed(self._others):
                stack.enter_context(other._attached_alone(sampling))
            stack.enter_context(self._attached_alone(sampling))
            yield

    @contextlib.contextmanager
    def _attached_alone(self, sampling: bool) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if sampling:
                stack.enter_context(self.telemetry.sampling(self.sampler))
            if sampling and self._activations is not None:
                stack.enter_context(self._activations.attached())
            if self._own is None:
                scale_loss, apply = self._outer.scale_loss, self._optimizer.apply

                def note_and_scale(loss: Any) -> Any:
                    self._plan.note_loss(loss)
                    return scale_loss(loss)

                stack.enter_context(replaced_method(self._outer, "scale_loss", note_and_scale))
                stack.enter_context(
                    replaced_method(self._optimizer, "apply", self._measuring(apply))
                )
            yield

    def latest(self) -> dict[str, Any]:
        """Return scalars of the last step for the logs, as tensors of the compiled step."""
        if not self.telemetry.paths:
            return {}
        return {**self.telemetry.latest(), "update_ratio": self.sampler.ratio()}

    def _function(self, *, sampling: bool) -> Callable[..., Any]:
        """Return a train function that measures and tells of each step in its logs.

        Args:
            sampling: Whether its steps may be sampled.
        """
        model, train_step = self._model, self._model.train_step

        @distribution.as_written
        def step_and_tell(data: Any) -> Any:
            for each in (self, *self._others):
                if each._activations is not None:
                    each._activations.begin()
            with self._around_steps(sampling=sampling), self.telemetry.noting():
                logs = train_step(data)
                scalars = self.latest() if isinstance(logs, dict) else {}
                if not scalars:
                    return logs
                self._names = tuple(scalars)
                return {**logs, _PACKED: pack(scalars)}

        with replaced_method(model, "train_step", step_and_tell):
            model.make_train_function(force=True)
        function: Callable[..., Any] = model.train_function
        return function

    def _unpacked(self, logs: Any) -> Any:
        if not isinstance(logs, dict) or _PACKED not in logs:
            return logs
        vector = logs[_PACKED]
        own = {name: value for name, value in logs.items() if name != _PACKED}
        return {**own, **unpack(self._names, vector)}

    def _around_steps(self, *, sampling: bool) -> contextlib.AbstractContextManager[None]:
        """Attach within the step, where that is traced by one thread and so but once."""
        return contextlib.nullcontext() if self._meets else self.attached(sampling=sampling)

    def _around_calls(self, *, sampling: bool) -> contextlib.AbstractContextManager[None]:
        """Attach round each call, where several replicas trace the step in threads of their own."""
        return self.attached(sampling=sampling) if self._meets else contextlib.nullcontext()

    @property
    def _meets(self) -> bool:
        return int(self._model.distribute_strategy.num_replicas_in_sync) > 1

    def _measuring(self, apply: Callable[..., Any]) -> Callable[..., None]:
        @distribution.as_written
        def measure_and_apply(grads: Any, trainable_variables: Any = None) -> None:
            gradients = list(grads)
            variables = trainable_variables
            variables = self._plan.variables if variables is None else list(variables)
            self.build(variables)
            incoming, rows, loss = self._measure(gradients, variables)

            def run() -> None:
                apply(gradients, trainable_variables)

            samplers = self.telemetry.samplers
            if not samplers:
                run()
            else:
                step = self.telemetry.next_step()

                def sampled() -> None:
                    run_sampled(samplers, step, run, self._plan.variables, rows, incoming, incoming)

                written = [*self._plan.variables, *self._optimizer.variables]
                written += self.telemetry.variables
                distribution.either(is_due(samplers, step), sampled, run, written)
            self.telemetry.record(incoming, incoming, loss, [])

        return measure_and_apply

    def _measure(
        self, gradients: list[Any], variables: list[Any]
    ) -> tuple[Measured, list[Any], Any | None]:
        plan = self._plan
        loss = plan.take_loss()
        summed, loss = distribution.sum_over_replicas(
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
