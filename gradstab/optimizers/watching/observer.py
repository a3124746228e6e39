"""Watches the steps of a model's optimizer, gradstab's or not, without standing in its place."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, final

import tensorflow as tf

from gradstab.keras_hooks.substitute import replaced_method
from gradstab.optimizers.compiled.branches import as_written
from gradstab.optimizers.step.accumulation import window_size
from gradstab.optimizers.telemetry.activations import Activations
from gradstab.optimizers.telemetry.sampling import Sampler
from gradstab.optimizers.watching.find import stabilized_optimizer, trains_the_whole
from gradstab.optimizers.watching.measuring import MeasuredOptimizer
from gradstab.optimizers.watching.packed import StepLogs, can_pack, pack

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
        optimizer: Which optimizer of the model; the one that it was compiled with if not given.
        name: Its name, where there are several and each has logs of its own; else `None`.

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
        optimizer: Any = None,
        name: str | None = None,
    ) -> None:
        self.sampler = sampler
        self._lock = lock or contextlib.nullcontext()
        self._model = model
        self._activations = activations
        self._outer = model.optimizer if optimizer is None else optimizer
        self._name = name
        self._own = stabilized_optimizer(self._outer)
        self._measured: MeasuredOptimizer | None = None
        if self._own is None:
            self._measured = MeasuredOptimizer(self._outer, model.distribute_strategy)
            self.telemetry = self._measured.telemetry
        else:
            self.telemetry = self._own.telemetry
        self.calls = 0
        self._next: int | None = None
        self._is_certain = False
        self._before: Any = None
        self._history: Any = None
        self._names: tuple[str, ...] = ()
        self._others: list[Observer] = []
        if self._measured is not None:
            if self._outer is model.optimizer and model.built and trains_the_whole(model):
                self._measured.build(model.trainable_variables)
            elif self._outer.built:
                self._measured.build_as_built()

    def observes(self, model: Any, optimizer: Any) -> bool:
        """Whether this is the observer of an optimizer of this model."""
        return self._model is model and self._outer is optimizer

    @property
    def model(self) -> Any:
        """The model whose steps are watched."""
        return self._model

    @property
    def optimizer(self) -> Any:
        """The optimizer that is watched."""
        return self._outer

    def describe(self) -> str:
        """Return the kind of the optimizer."""
        return type(self._outer if self._own is None else self._own.inner_optimizer).__name__

    # While a run lasts ----------------------------------------------------------------------------

    def install(self) -> None:
        """Have the model trace its step anew, watched, from now to `uninstall`."""
        model = self._model
        steps = self.telemetry.peek().cursor
        self.telemetry.is_used = False
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
        # Then the function that samples is called on steps that are due, and on no others.
        self._is_certain = self._next is not None
        function = unsampled = self._function(sampling=True)
        if self._next is not None:
            unsampled = self._function(sampling=False)

        # There the threads of the replicas trace the step: attached around the call, it is once.
        has_replicas = self._has_replicas

        def watched(*arguments: Any) -> Any:
            nonlocal function, unsampled
            if model.history is not history:
                # Another run, of which nobody told: the last one ended by an exception.
                self.uninstall()
                return model.make_train_function()(*arguments)
            try:
                with self._lock:
                    if self._next is None and self._is_certain:
                        # The count of steps is not to be trusted any more.
                        self._is_certain = False
                        function = unsampled = self._function(sampling=True)
                        model.train_function = watched
                    sampling = self._may_sample()
                    call = function if sampling else unsampled
                    if has_replicas:
                        with self.attached(sampling=sampling):
                            logs = call(*arguments)
                    else:
                        logs = call(*arguments)
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
        if self._name is not None:  # Of several, none need step just once in a call.
            return False
        if model.steps_per_execution != 1 or model.run_eagerly or self.sampler.every_n_steps == 1:
            return False
        if self._own is None:  # A loss scale round another optimizer skips steps by itself.
            return not hasattr(self._outer, "inner_optimizer")
        return window_size(self._own.inner_optimizer) == 1

    def _may_sample(self) -> bool:
        step = self._next
        if step is None or self.sampler.falls_on(step):
            return True
        return any(other.sampler.falls_on(step) for other in self._others)

    @contextlib.contextmanager
    def attached(self, *, sampling: bool = True) -> Iterator[None]:
        """Have the optimizer measure in what is traced, or run eagerly, in this block.

        Args:
            sampling: Whether samples may be due.
        """
        with contextlib.ExitStack() as stack:
            for other in reversed(self._others):
                stack.enter_context(other._attached_alone(sampling, False))
            is_certain = self._is_certain and not self._others
            stack.enter_context(self._attached_alone(sampling, is_certain))
            yield

    @contextlib.contextmanager
    def _attached_alone(self, sampling: bool, is_certain: bool) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if sampling:
                stack.enter_context(self.telemetry.sampling(self.sampler, is_certain=is_certain))
            if sampling and self._activations is not None:
                stack.enter_context(self._activations.attached())
            if self._measured is not None:
                stack.enter_context(self._measured.attached())
            yield

    def latest(self) -> dict[str, Any]:
        """Return scalars of the last steps for the logs, as tensors of the compiled step.

        Of several optimizers, those of each that takes part in the step, by name; if it is but one,
        without.
        """
        every = {id(each.telemetry): each for each in (*self._others, self)}
        used = [each for each in every.values() if each.telemetry.is_used and each.telemetry.paths]
        logs: dict[str, Any] = {}
        for each in used:
            prefix = f"{each._name}/" if len(used) > 1 and each._name is not None else ""
            scalars = {**each.telemetry.latest(), "update_ratio": each.sampler.ratio()}
            logs |= {f"{prefix}{name}": value for name, value in scalars.items()}
        return logs

    def _function(self, *, sampling: bool) -> Callable[..., Any]:
        """Return a train function that measures and tells of each step in its logs.

        Args:
            sampling: Whether its steps may be sampled.
        """
        model, train_step = self._model, self._model.train_step

        @as_written
        def step_and_tell(data: Any) -> Any:
            watching = (self, *self._others)
            for each in watching:
                if each._activations is not None:
                    each._activations.begin()
            with contextlib.ExitStack() as stack:
                stack.enter_context(self._around_steps(sampling=sampling))
                for telemetry in {id(e.telemetry): e.telemetry for e in watching}.values():
                    stack.enter_context(telemetry.noting())
                logs = train_step(data)
                scalars = self.latest() if isinstance(logs, dict) else {}
                if not scalars:
                    return logs
                packed = {name: log for name, log in logs.items() if can_pack(log)} | scalars
                self._names = tuple(packed)
                others = {name: log for name, log in logs.items() if name not in packed}
                return {**others, _PACKED: pack(packed)}

        with replaced_method(model, "train_step", step_and_tell):
            model.make_train_function(force=True)
        function: Callable[..., Any] = model.train_function
        return function

    def _unpacked(self, logs: Any) -> Any:
        if not isinstance(logs, dict) or _PACKED not in logs:
            return logs
        vector = logs.pop(_PACKED)
        return StepLogs(logs, self._names, vector)

    def _around_steps(self, *, sampling: bool) -> contextlib.AbstractContextManager[None]:
        """Attach within the step, where that is traced by one thread and so but once."""
        return contextlib.nullcontext() if self._has_replicas else self.attached(sampling=sampling)

    @property
    def _has_replicas(self) -> bool:
        return int(self._model.distribute_strategy.num_replicas_in_sync) > 1
