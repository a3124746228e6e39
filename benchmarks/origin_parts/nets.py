"""Five small nets, each with a place where a layer can be put in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

CLASSES, BATCH, BATCHES = 4, 8, 8
HALF = "mixed"

Shape = tuple[int, ...]


def mlp(x: Any, slot: Callable[[Any], Any]) -> Any:
    x = keras.layers.Dense(16, "tanh", name="first")(x)
    x = slot(keras.layers.Dense(16, "tanh", name="second")(x))
    return keras.layers.Dense(12, "relu", name="third")(x)


def cnn(x: Any, slot: Callable[[Any], Any]) -> Any:
    x = keras.layers.Conv2D(6, 3, name="first")(x)
    x = keras.layers.BatchNormalization(name="second")(x)
    x = slot(keras.layers.Activation("relu", name="relu")(x))
    x = keras.layers.Conv2D(6, 3, activation="relu", name="third")(x)
    return keras.layers.GlobalAveragePooling2D(name="pool")(x)


def gru(x: Any, slot: Callable[[Any], Any]) -> Any:
    x = slot(keras.layers.Dense(6, name="first")(x))
    x = keras.layers.GRU(8, name="second")(x)
    return keras.layers.Dense(8, "relu", name="third")(x)


def transformer(x: Any, slot: Callable[[Any], Any]) -> Any:
    attended = keras.layers.MultiHeadAttention(2, 4, name="first")(x, x)
    x = keras.layers.LayerNormalization(name="second")(keras.layers.Add(name="add")([x, attended]))
    x = slot(keras.layers.Dense(16, "gelu", name="up")(x))
    x = keras.layers.Dense(8, name="third")(x)
    return keras.layers.GlobalAveragePooling1D(name="pool")(x)


NETS: dict[str, tuple[Shape, Callable[[Any, Any], Any]]] = {
    "mlp": ((8,), mlp),
    "cnn": ((8, 8, 2), cnn),
    "gru": ((5, 6), gru),
    "transformer": ((5, 8), transformer),
    HALF: ((8,), mlp),
}


def build(net: str, slot: Callable[[Any], Any] = lambda x: x) -> keras.Model:
    """Return a net, not compiled; layers in the slot take its dtype policy."""
    shape, body = NETS[net]
    keras.mixed_precision.set_global_policy("mixed_float16" if net == HALF else "float32")
    try:
        inputs = keras.Input(shape)
        # The head in float32, as Keras advises.
        head = keras.layers.Dense(CLASSES, "softmax", name="head", dtype="float32")
        return keras.Model(inputs, head(body(inputs, slot)))
    finally:
        keras.mixed_precision.set_global_policy("float32")


def data(net: str, seed: int) -> tuple[Any, Any, Any]:
    """Return inputs, one-hot targets and sample weights."""
    draw = np.random.default_rng(seed)
    rows = BATCH * BATCHES
    x = draw.normal(size=(rows, *NETS[net][0])).astype("float32")
    y = np.eye(CLASSES, dtype="float32")[draw.integers(0, CLASSES, rows)]
    return x, y, np.ones(rows, "float32")
