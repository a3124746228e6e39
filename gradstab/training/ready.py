"""Checks and builds a model before its step is traced."""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import tensorflow as tf

from gradstab.optimizers.watching.find import bind
from gradstab.training.feed import Feed


def check_model(model: Any) -> None:
    """Raise unless it is a compiled Keras model on TensorFlow."""
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "`training.train` needs Keras on TensorFlow. Received: "
            f"the backend {keras.backend.backend()!r}. Set KERAS_BACKEND=tensorflow, or use `fit`"
        )
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a keras.Model. Received: model={model!r}")
    if not model.compiled or model.optimizer is None:
        raise ValueError(
            "`model` must be compiled with an optimizer. Call `model.compile(optimizer, loss=...)` "
            f"first. Received: model={model!r}"
        )


def build(model: Any, feed: Feed) -> None:
    """Make all variables, and let an optimizer of ours know the model, before a step is traced."""
    strategy = model.distribute_strategy
    batch = feed.signature()
    if model.built and model.optimizer.built and getattr(model, "train_function", None) is not None:
        bind(model)  # It was trained before, and nothing is left to be made.
        return
    # Variables that are made while a step is traced make TensorFlow trace it twice: here it is the
    # short step without gradients. A model without a loss has none, and may yet train by a step of
    # its own; whatever is really wrong comes up again in a moment.
    with contextlib.suppress(Exception):
        _trace(strategy, model.test_step, batch)
    if not model.built:
        _trace(strategy, model, keras.utils.unpack_x_y_sample_weight(batch)[0])
    bind(model)
    if not model.optimizer.built:
        with strategy.scope():
            model.optimizer.build(model.trainable_variables)


def _trace(strategy: Any, function: Any, argument: Any) -> None:
    def run(data: Any) -> Any:
        return strategy.run(function, args=(data,))

    tf.function(run, autograph=False).get_concrete_function(argument)
