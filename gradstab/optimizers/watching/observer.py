"""Watches the steps of a model's optimizer, gradstab's or not, without standing in its place."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Final, final

from gradstab.optimizers.step.accumulation import window_size
from gradstab.optimizers.telemetry.activations import Activations
from gradstab.optimizers.telemetry.sampling import Sampler
from gradstab.optimizers.watching.compiled import compiled_of
from gradstab.optimizers.watching.find import stabilized_optimizer, trains_the_whole
from gradstab.optimizers.watching.measuring import MeasuredOptimizer
from gradstab.optimizers.watching.watched import unwatch, watch

# Stands for the history of a run where there is none.
_NO_RUN: Final = object()


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
        lock: As given.
        name: As given.
        calls: How often `fit` has called the watched step, which may run many steps in a call.
        next_step: Number of the step that the next call takes; `None` where that is not known.
        history: The history of the run that is watched.
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
        self.lock = lock or contextlib.nullcontext()
        self.name = name
        self.history: Any = _NO_RUN
        self._model = model
        self._activations = activations
        self._outer = model.optimizer if optimizer is None else optimizer
        self._own = stabilized_optimizer(self._outer)
        self._measured: MeasuredOptimizer | None = None
        if self._own is None:
            self._measured = MeasuredOptimizer(self._outer, model.distribute_strategy)
            self.telemetry = self._measured.telemetry
        else:
            self.telemetry = self._own.telemetry
        self.calls = 0
        self.next_step: int | None = None
        self._owner: Callable[[], Any] = lambda: None
        self._settings: tuple[Any, ...] = ()
        self._probe: Any = None
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
    def layers(self) -> tuple[str, ...]:
        """Names of the layers whose outputs are noted."""
        return () if self._activations is None else self._activations.layers

    @property
    def optimizer(self) -> Any:
        """The optimizer that is watched."""
        return self._outer

    def describe(self) -> str:
        """Return the kind of the optimizer."""
        return type(self._outer if self._own is None else self._own.inner_optimizer).__name__

    # While a run lasts ----------------------------------------------------------------------------

    def install(self) -> None:
        """Have the model's steps watched from now to `uninstall`."""
        steps = self.telemetry.peek().cursor
        self.sampler.begin(steps)
        # Variables that are made while a step is traced have it traced once more.
        self.telemetry.prepare(self.sampler)
        self.history = self._model.history
        watch(self._model, self)
        self.next_step = steps + 1 if self._knows_steps() else None

    def uninstall(self) -> None:
        """Give the model back the step that it had."""
        unwatch(self._model, self)
        self.history = _NO_RUN

    @property
    def is_watching(self) -> bool:
        """Whether it watches the run that the model is in."""
        return self.history is self._model.history

    def count_call(self) -> None:
        """Take in that the watched step was called, which may have run many steps."""
        self.calls += 1
        if self.next_step is not None:
            self.next_step += 1

    def settle(self, cursor: int) -> None:
        """Compare the count of steps with that of the device; from then on, trust it or not.

        Args:
            cursor: The steps that the telemetry counts.
        """
        if self.next_step != cursor + 1:
            self.next_step = None

    def _knows_steps(self) -> bool:
        """Whether each call is one step of the telemetry, as far as can be known beforehand.

        The condition that leaves the sampler out on most steps is handed every gradient and
        variable for it, which alone takes a step of many small ones a tenth longer. Where it is
        known here which calls hold no sampled step, those get a function without a sampler.
        """
        model = self._model
        if self.name is not None:  # Of several, none need step just once in a call.
            return False
        if model.steps_per_execution != 1 or model.run_eagerly or self.sampler.every_n_steps == 1:
            return False
        if self._own is None:  # A loss scale round another optimizer skips steps by itself.
            return not hasattr(self._outer, "inner_optimizer")
        return window_size(self._own.inner_optimizer) == 1

    @contextlib.contextmanager
    def attached(self, *, sampling: bool) -> Iterator[None]:
        """Have the optimizer measure in what is traced, or run eagerly, in this block.

        Args:
            sampling: Whether samples may be due.
        """
        with contextlib.ExitStack() as stack:
            if sampling:
                stack.enter_context(self.telemetry.sampling(self.sampler))
            if sampling and self._activations is not None:
                stack.enter_context(self._activations.attached())
            if self._measured is not None:
                stack.enter_context(self._measured.attached())
            yield

    def begin_step(self) -> None:
        """Forget what was noted of the step before, where a step is traced or run eagerly."""
        if self._activations is not None:
            self._activations.begin()

    # Between runs ---------------------------------------------------------------------------------

    def is_like(self, optimizer: Any, settings: tuple[Any, ...], probe: Any) -> bool:
        """Whether it watches this optimizer as `observer_of` asks for."""
        same = self._outer is optimizer and self._probe is probe
        return same and self._settings == settings

    def belongs_to(self, owner: Any) -> bool:
        """Whether this callback was the last that it watched for."""
        return self._owner() is owner

    def serve(
        self,
        owner: Any,
        lock: contextlib.AbstractContextManager[Any],
        settings: tuple[Any, ...],
        probe: Any,
    ) -> None:
        """Watch for another callback, as if made for it."""
        self._owner, self.lock = weakref.ref(owner), lock
        self._settings, self._probe = settings, probe
        self.calls = 0
        self.sampler.reset()
        if self._measured is not None:
            self._measured.reset()


def observer_of(
    model: Any,
    optimizer: Any,
    owner: Any,
    lock: contextlib.AbstractContextManager[Any],
    settings: tuple[Any, ...],
    probe: Any,
    make: Callable[[], Observer],
) -> Observer:
    """Return an observer for a callback: one that waits for another run, or a new one.

    Args:
        model: A compiled model.
        optimizer: An optimizer in it.
        owner: The callback.
        lock: As in `Observer`.
        settings: Whatever else what is traced depends on.
        probe: That too, by identity.
        make: Returns a new one.
    """
    found: Observer | None = compiled_of(model).free_observer(
        lambda each: each.is_like(optimizer, settings, probe)
    )
    observer = make() if found is None else found
    observer.serve(owner, lock, settings, probe)
    return observer
