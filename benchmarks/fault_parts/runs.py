"""One run: a net, an optimizer, what protects it, and what befalls it."""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import gradstab
from fault_parts import faults, nets
from gradstab.callbacks import DivergenceGuard

LOSS = keras.losses.CategoricalCrossentropy(from_logits=True)
COLUMNS = ("plain", "Keras' callbacks", "stabilize", "guard", "guard, plain optimizer")

Strike = Callable[[faults.Batches, nets.Backward], list[keras.callbacks.Callback]]


def harmless(batches: faults.Batches, backward: nets.Backward) -> list[keras.callbacks.Callback]:
    """Do nothing."""
    return []


class Trainee:
    """A model that is traced once and trained many times, each time from new first weights.

    Args:
        model: A model that is not compiled yet.
        backward: What multiplies its gradient.
        optimizer: A Keras optimizer.
        column: One of `COLUMNS`.
    """

    def __init__(self, model: Any, backward: nets.Backward, optimizer: Any, column: str) -> None:
        if column in ("stabilize", "guard"):
            optimizer = gradstab.stabilize(optimizer)
        model.compile(optimizer, LOSS)
        optimizer.build(model.trainable_variables)
        self.model = model
        self.backward = backward
        self.column = column
        variables = {id(v): v for v in (*model.variables, *optimizer.variables)}
        self._begun = [(v, np.array(v)) for v in variables.values()]

    def begin(self, weights: list[Any]) -> None:
        """Set all to what it was, and the weights to those of a seed."""
        for variable, value in self._begun:
            variable.assign(value)
        self.model.set_weights(weights)


@functools.cache
def _trainee(net: str, optimizer: str, column: str) -> Trainee:
    return Trainee(*nets.build(net, 0), nets.OPTIMIZERS[optimizer](), column)


@functools.cache
def _first_weights(net: str, seed: int) -> list[Any]:
    weights: list[Any] = nets.build(net, seed)[0].get_weights()
    return weights


def train(
    net: str, optimizer: str, column: str, seed: int, steps: int, strike: Strike = harmless
) -> dict[str, Any]:
    """Train a net from the first weights of a seed.

    Args:
        net: One of `nets.NETS`.
        optimizer: One of `nets.OPTIMIZERS`.
        column: One of `COLUMNS`.
        seed: Gives first weights and the order of the data.
        steps: Steps of the run.
        strike: Changes batches, and returns callbacks that do harm.
    """
    trainee = _trainee(net, optimizer, column)
    trainee.begin(_first_weights(net, seed))
    return fit(trainee, seed, steps, strike)


def fit(
    trainee: Trainee,
    seed: int,
    steps: int,
    strike: Strike = harmless,
    batch: int = nets.BATCH,
    is_masked: bool = False,
) -> dict[str, Any]:
    """Train a model, and return its accuracy on other data and what the guard did."""
    keras.utils.set_random_seed(seed)
    model, column = trainee.model, trainee.column
    batches = faults.Batches(*nets.batches(seed, steps, batch))
    harm = strike(batches, trainee.backward)
    guard = DivergenceGuard("recover", verbose=False)
    helpers: list[Any] = []
    if column == "Keras' callbacks":
        plateau = keras.callbacks.ReduceLROnPlateau(monitor="loss", factor=0.5, patience=2)
        helpers = [keras.callbacks.TerminateOnNaN(), plateau]
    elif column.startswith("guard"):
        helpers = [guard]
    per_epoch = len(nets.digits()[0]) // batch
    data = tf.data.Dataset.from_tensor_slices((batches.x, batches.y, batches.weight))
    if is_masked:
        data = gradstab.data.BadExamples().masked(data)
    told = ""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            model.fit(
                data, epochs=steps // per_epoch, steps_per_epoch=per_epoch, verbose=0,
                callbacks=[*harm, *helpers],
            )  # fmt: skip
        except Exception as error:  # An end that is no end of training counts as such.
            told = f"{type(error).__name__}: {str(error)[:200]}"
    return {
        "accuracy": accuracy(model),
        "actions": [f"{a.step} {a.name} {a.kind}" for a in guard.actions],
        "code": guard.code,
        "raised": told,
    }


def accuracy(model: Any) -> float:
    """Return the accuracy on data that the model was not trained on, in points."""
    _, _, x, y = nets.digits()
    scores = np.asarray(model(x, training=False))
    if not np.isfinite(scores).all():
        return 0.0
    return round(100.0 * float(np.mean(scores.argmax(-1) == y.argmax(-1))), 3)
