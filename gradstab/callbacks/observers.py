"""The observers of a model's optimizers: reused from an earlier run, or new."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from typing import Any

from gradstab.callbacks.probe import ProbeLoss
from gradstab.optimizers.telemetry.activations import Activations
from gradstab.optimizers.telemetry.sampling import Sampler
from gradstab.optimizers.watching.observer import Observer, observer_of


def observers_of(
    model: Any,
    optimizers: Mapping[str, Any],
    owner: Any,
    lock: contextlib.AbstractContextManager[Any],
    *,
    every_n_steps: int,
    bins: int,
    activations: bool,
    probe: tuple[Any, Any, Any] | None,
    probe_as_given: Any,
) -> dict[str, Observer]:
    """Return an observer for each optimizer of a model, by its name.

    Args:
        model: A compiled model.
        optimizers: Its optimizers, by name.
        owner: The callback that they watch for.
        lock: Held while steps run.
        every_n_steps: Steps between two samples.
        bins: Bins of the histogram of each gradient; 0 for none.
        activations: Whether samples tell of the layers' outputs. The model has to be built.
        probe: The batch that is kept aside, as inputs, targets and weights, or `None`.
        probe_as_given: The same object at every call that means the same batch.
    """
    observers: dict[str, Observer] = {}
    for name, optimizer in optimizers.items():
        if observers:  # They belong to the model, and so to one of its optimizers.
            activations, probe, probe_as_given = False, None, None
        own_name = name if len(optimizers) > 1 else None
        settings = (own_name, every_n_steps, bins, activations)
        make = functools.partial(_observer, model, optimizer, *settings, probe)
        observers[name] = observer_of(model, optimizer, owner, lock, settings, probe_as_given, make)
    return observers


def _observer(
    model: Any,
    optimizer: Any,
    name: str | None,
    every_n_steps: int,
    bins: int,
    activations: bool,
    probe: tuple[Any, Any, Any] | None,
) -> Observer:
    noted = Activations(model) if activations else None
    loss = None if probe is None else ProbeLoss(model, probe, noted)
    sampler = Sampler(every_n_steps, bins=bins, probe=loss, activations=noted)
    return Observer(model, sampler, noted, optimizer=optimizer, name=name)
