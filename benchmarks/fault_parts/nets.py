"""What is trained: four kinds of nets on the digits, by Adam and by SGD with momentum."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

BATCH = 32
CLASSES = 10


@functools.cache
def digits() -> tuple[Any, Any, Any, Any]:
    """Return images as 8 rows of 8 numbers, one-hot labels, and the same of the test part."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(11).permutation(len(x))
    x = (x[order] / 16.0).reshape(-1, 8, 8).astype("float32")
    y = np.eye(CLASSES, dtype="float32")[y[order]]
    return x[:1257], y[:1257], x[1257:], y[1257:]


class Backward:
    """An identity whose gradient is multiplied by a number that can be changed from outside."""

    def __init__(self) -> None:
        self.factor = tf.Variable(1.0, trainable=False)

    def layer(self) -> Any:
        """Return the identity as a layer."""

        @tf.custom_gradient
        def identity(x: Any) -> Any:
            return tf.identity(x), lambda upstream: upstream * self.factor

        return layers.Lambda(identity, output_shape=lambda shape: shape, name="backward")


def _cnn(backward: Any) -> list[Any]:
    return [
        layers.Reshape((8, 8, 1)),
        layers.Conv2D(12, 3, padding="same", use_bias=False, name="first"),
        layers.BatchNormalization(momentum=0.9),
        layers.ReLU(),
        layers.MaxPooling2D(),
        backward,
        layers.Conv2D(24, 3, padding="same", use_bias=False),
        layers.BatchNormalization(momentum=0.9),
        layers.ReLU(),
        layers.GlobalAveragePooling2D(),
    ]


def _mlp(backward: Any) -> list[Any]:
    return [
        layers.Flatten(),
        layers.Dense(64, "relu", name="first"),
        backward,
        layers.Dense(48, "relu"),
    ]


def _gru(backward: Any) -> list[Any]:
    return [layers.GRU(32, unroll=True, name="first"), backward, layers.Dense(32, "relu")]


class Block(layers.Layer):
    """A transformer block: attention, then two dense layers, each added to what comes in."""

    def __init__(self, **arguments: Any) -> None:
        """Make the layers."""
        super().__init__(**arguments)
        self.norms = [layers.LayerNormalization() for _ in range(2)]
        self.attention = layers.MultiHeadAttention(4, 8)
        self.dense = [layers.Dense(64, "gelu"), layers.Dense(32)]

    def build(self, shape: Any) -> None:
        """Build them, so that the model is built before its first step."""
        for norm in self.norms:
            norm.build(shape)
        self.attention.build(shape, shape)
        self.dense[0].build(shape)
        self.dense[1].build((*shape[:-1], 64))

    def call(self, x: Any) -> Any:
        """Return the output, of the same shape."""
        y = self.norms[0](x)
        x = x + self.attention(y, y)
        return x + self.dense[1](self.dense[0](self.norms[1](x)))


def _transformer(backward: Any) -> list[Any]:
    return [
        layers.Dense(32, name="first"),
        backward,
        Block(),
        layers.LayerNormalization(),
        layers.Flatten(),
    ]


NETS: dict[str, Callable[[Any], list[Any]]] = {
    "CNN": _cnn,
    "MLP": _mlp,
    "GRU": _gru,
    "transformer": _transformer,
}
OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "Adam": lambda: keras.optimizers.Adam(2e-3),
    "SGD": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
}


def build(net: str, seed: int) -> tuple[Any, Backward]:
    """Return a model that is not compiled yet, and what multiplies its gradient."""
    keras.utils.set_random_seed(seed)
    backward = Backward()
    body = NETS[net](backward.layer())
    return keras.Sequential([keras.Input((8, 8)), *body, layers.Dense(CLASSES)]), backward


def batches(seed: int, steps: int, batch: int = BATCH) -> tuple[Any, Any, Any]:
    """Return inputs, labels and weights of all steps of a run, in an order that the seed gives."""
    x, y, _, _ = digits()
    draw = np.random.default_rng([seed, 1])
    per_epoch = len(x) // batch
    epochs = -(-steps // per_epoch)
    rows = np.concatenate(
        [draw.permutation(len(x))[: per_epoch * batch].reshape(-1, batch) for _ in range(epochs)]
    )[:steps]
    return x[rows], y[rows], np.ones(rows.shape, "float32")
