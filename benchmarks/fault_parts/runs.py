"""One run: a net, an optimizer, what protects it, and what befalls it."""

from __future__ import annotations

import contextlib
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


def train(
    net: str,
    optimizer: Any,
    column: str,
    seed: int,
    steps: int,
    *,
    strike: Strike = lambda batches, backward: [],
    batch: int = nets.BATCH,
    built: tuple[Any, nets.Backward] | None = None,
) -> dict[str, Any]:
    """Train a net, and return its accuracy on other data and what the guard did.

    Args:
        net: One of `nets.NETS`.
        optimizer: A Keras optimizer.
        column: One of `COLUMNS`.
        seed: Gives first weights and the order of the data.
        steps: Steps of the run.
        strike: Changes batches, and returns callbacks that do harm.
        batch: Examples of a batch.
        built: The model, where it is not to be made by name.
    """
    model, backward = built or nets.build(net, seed)
    batches = faults.Batches(*nets.batches(seed, steps, batch))
    harm = strike(batches, backward)
    guard = DivergenceGuard("recover", verbose=False)
    helpers: list[Any] = []
    if column == "Keras' callbacks":
        plateau = keras.callbacks.ReduceLROnPlateau(monitor="loss", factor=0.5, patience=2)
        helpers = [keras.callbacks.TerminateOnNaN(), plateau]
    elif column.startswith("guard"):
        helpers = [guard]
    if column in ("stabilize", "guard"):
        optimizer = gradstab.stabilize(optimizer)
    model.compile(optimizer, LOSS)
    per_epoch = len(nets.digits()[0]) // batch
    data = tf.data.Dataset.from_tensor_slices((batches.x, batches.y, batches.weight))
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
        "actions": [f"{a.step} {a.name} {a.code}" for a in guard.actions],
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
