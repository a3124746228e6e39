"""A model's step as it is compiled while observers watch it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import tensorflow as tf

from gradstab.keras_hooks.substitute import replaced_method
from gradstab.optimizers.compiled.branches import as_written
from gradstab.optimizers.watching.compiled import compiled_of
from gradstab.optimizers.watching.packed import StepLogs, can_pack, pack

if TYPE_CHECKING:
    from gradstab.optimizers.watching.observer import Observer

# By this name a step that is watched tells so.
_ATTRIBUTE: Final = "gradstab_watched"
# Under this name the scalars of a step leave the compiled function.
_PACKED: Final = "gradstab_scalars"
# A step with the condition that leaves the samplers out takes many small variables a tenth longer,
# and another one without takes as long to trace as a thousand steps and more.
_CALLS_BEFORE_ANOTHER: Final = 1000


class WatchedStep:
    """The function that `fit` calls for a step while observers watch.

    It is compiled once, with a condition that leaves the samplers out of the steps that are not
    due. A long run gets a second one without samplers, for the calls of which is known that they
    hold no step that is due. Both serve later runs under the same observers.

    Args:
        model: A compiled model.
        observers: Those who watch, the latest first.

    Attributes:
        observers: As given.
        before: The function that the model had before this run.
        used: Those whose optimizers took part in steps that were traced or run.
    """

    def __init__(self, model: Any, observers: tuple[Observer, ...]) -> None:
        self.observers = observers
        self.before: Any = None
        self.used: frozenset[Observer] = frozenset()
        self._model = model
        self._names: tuple[str, ...] = ()
        self._calls = 0
        self._function = self._compiled(sampling=True)
        self._unsampled = self._compiled(sampling=False)
        setattr(self, _ATTRIBUTE, self)
        self.__name__ = "watched"

    def begin(self, before: Any) -> None:
        """Stand in the place of another function for a run."""
        self.before = before
        # By this name `inspect.unwrap` finds the function that Keras made.
        self.__wrapped__ = before
        for each in self.observers:
            each.telemetry.is_used = each in self.used
        self._model.train_function = self

    def end(self) -> None:
        """Give the model back the function that it had."""
        self.used = frozenset(each for each in self.observers if each.telemetry.is_used)
        if watched_step(self._model) is self:
            self._model.train_function = self.before

    @property
    def is_of_this_run(self) -> bool:
        """Whether it was installed in the run that the model is in."""
        return self.observers[0].history is self._model.history

    def __call__(self, *arguments: Any) -> Any:
        """Take a step, or as many as `steps_per_execution` says."""
        if not self.is_of_this_run:
            # Another run, of which nobody told: the last one ended by an exception.
            self.end()
            return self._model.make_train_function()(*arguments)
        first = self.observers[0]
        try:
            with first.lock:
                is_plain = self._calls >= _CALLS_BEFORE_ANOTHER and not self._may_sample()
                call = self._unsampled if is_plain else self._function
                if self._has_replicas:
                    # There the threads of the replicas trace the step: attached around the call,
                    # it is once.
                    with self.attached(sampling=not is_plain):
                        logs = call(*arguments)
                else:
                    logs = call(*arguments)
                self._calls += 1
                for each in self.observers:
                    each.count_call()
                return self._unpacked(logs)
        except (StopIteration, tf.errors.OutOfRangeError):
            raise  # The end of an epoch.
        except BaseException:
            self.end()
            raise

    def _may_sample(self) -> bool:
        step = self.observers[0].next_step
        return step is None or any(each.sampler.falls_on(step) for each in self.observers)

    @contextlib.contextmanager
    def attached(self, *, sampling: bool = True) -> Iterator[None]:
        """Have the optimizers measure in what is traced, or run eagerly, in this block.

        Args:
            sampling: Whether samples may be due.
        """
        with contextlib.ExitStack() as stack:
            for each in reversed(self.observers):
                stack.enter_context(each.attached(sampling=sampling))
            yield

    def latest(self) -> dict[str, Any]:
        """Return scalars of the last steps for the logs, as tensors of the compiled step.

        Of several optimizers, those of each that takes part in the step, by name; if it is but one,
        without.
        """
        every = {id(each.telemetry): each for each in (*self.observers[1:], self.observers[0])}
        used = [each for each in every.values() if each.telemetry.is_used and each.telemetry.paths]
        logs: dict[str, Any] = {}
        for each in used:
            prefix = f"{each.name}/" if len(used) > 1 and each.name is not None else ""
            scalars = {**each.telemetry.latest(), "update_ratio": each.sampler.ratio()}
            logs |= {f"{prefix}{name}": value for name, value in scalars.items()}
        return logs

    def _compiled(self, *, sampling: bool) -> Callable[..., Any]:
        """Return a train function that measures and tells of each step in its logs.

        Args:
            sampling: Whether its steps may be sampled.
        """
        model, train_step = self._model, self._model.train_step

        @as_written
        def step_and_tell(data: Any) -> Any:
            for each in self.observers:
                each.begin_step()
            with contextlib.ExitStack() as stack:
                if not self._has_replicas:
                    # Within the step, where it is traced by one thread and so but once.
                    stack.enter_context(self.attached(sampling=sampling))
                for telemetry in {id(e.telemetry): e.telemetry for e in self.observers}.values():
                    stack.enter_context(telemetry.noting())
                logs = train_step(data)
                scalars = self.latest() if isinstance(logs, dict) else {}
                if not scalars:
                    return logs
                packed = {name: log for name, log in logs.items() if can_pack(log)} | scalars
                self._names = tuple(packed)
                others = {name: log for name, log in logs.items() if name not in packed}
                return {**others, _PACKED: pack(packed)}

        current = model.train_function
        with replaced_method(model, "train_step", step_and_tell):
            model.make_train_function(force=True)
        function: Callable[..., Any] = model.train_function
        model.train_function = current
        return function

    def _unpacked(self, logs: Any) -> Any:
        if not isinstance(logs, dict) or _PACKED not in logs:
            return logs
        vector = logs.pop(_PACKED)
        return StepLogs(logs, self._names, vector)

    @property
    def _has_replicas(self) -> bool:
        return int(self._model.distribute_strategy.num_replicas_in_sync) > 1


def watched_step(model: Any) -> WatchedStep | None:
    """Return what watches the steps of a model, or `None`."""
    watched: WatchedStep | None = getattr(model.train_function, _ATTRIBUTE, None)
    return watched


def watch(model: Any, observer: Observer) -> None:
    """Have the model's step watched, by whoever watches it in this run already, too."""
    below = watched_step(model)
    if below is not None and not below.is_of_this_run:
        below.end()  # The last run ended by an exception.
        below = None
    compiled = compiled_of(model)
    compiled.add_observer(observer)
    observers = (observer, *(() if below is None else below.observers))
    watched = compiled.watched(observers, lambda: WatchedStep(model, observers))
    watched.begin(model.train_function if below is None else below.before)


def unwatch(model: Any, observer: Observer) -> None:
    """Give the model back the step that it had."""
    watched = watched_step(model)
    if watched is not None and observer in watched.observers:
        watched.end()
