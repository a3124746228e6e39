"""Keeps the state of a model and of all random generators, and puts it back bit for bit."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf


def variables_of(model: Any) -> list[Any]:
    """Return everything of a model and its optimizer that training may change."""
    found = {id(each): each for each in model.variables}
    optimizer = getattr(model, "optimizer", None)
    for each in (*getattr(optimizer, "variables", ()), *model.metrics_variables):
        found.setdefault(id(each), each)
    return list(found.values())


@contextlib.contextmanager
def preserved(model: Any) -> Iterator[None]:
    """Put variables and random generators back when the block ends, however it ends."""
    generators = random.getstate(), np.random.get_state()  # noqa: NPY002  the global one is meant
    tensorflow_generator = tf.random.get_global_generator()
    tensorflow_state = tf.identity(tensorflow_generator.state)
    kept = [(each, tf.identity(each.value)) for each in variables_of(model)]
    stop_training = getattr(model, "stop_training", False)
    try:
        yield
    finally:
        for variable, value in kept:
            variable.assign(value)
        tensorflow_generator.state.assign(tensorflow_state)
        random.setstate(generators[0])
        np.random.set_state(generators[1])  # noqa: NPY002
        model.stop_training = stop_training


class Snapshot:
    """Values of the variables of a model, to begin several trainings from."""

    def __init__(self, model: Any) -> None:
        self._kept = [(each, tf.identity(each.value)) for each in model.variables]

    def restore(self) -> None:
        """Put the values back."""
        for variable, value in self._kept:
            variable.assign(value)
