"""Nets whose steps and starts are timed, and one batch for each, over and over."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

CLASSES, VOCABULARY, TOKENS, WIDTH = 10, 1000, 64, 128

layers = keras.layers


def mlp(depth: int) -> keras.Model:
    hidden = [layers.Dense(64, "relu", kernel_initializer="he_normal") for _ in range(depth)]
    return keras.Sequential([layers.Input((64,)), *hidden, layers.Dense(CLASSES)])


def cnn() -> keras.Model:
    model = keras.Sequential([layers.Input((48, 48, 3))])
    for filters in (32, 64, 64, 256):
        model.add(layers.Conv2D(filters, 3, padding="same", activation="relu"))
        model.add(layers.MaxPooling2D(2, padding="same"))
    for layer in (layers.Flatten(), layers.Dense(128, activation="relu"), layers.Dense(CLASSES)):
        model.add(layer)
    return model


class AddPositions(layers.Layer):
    """Adds a learned vector for each place of a sequence."""

    def build(self, input_shape: Any) -> None:
        """Make the vectors."""
        self.positions = self.add_weight(shape=input_shape[1:], initializer="random_normal")

    def call(self, inputs: Any) -> Any:
        """Add them."""
        return inputs + self.positions


def transformer(blocks: int = 4) -> keras.Model:
    tokens = layers.Input((TOKENS,), dtype="int32")
    x = AddPositions()(layers.Embedding(VOCABULARY, WIDTH)(tokens))
    for _ in range(blocks):
        normed = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(4, WIDTH // 4)(normed, normed)
        hidden = layers.Dense(512, activation="gelu")(layers.LayerNormalization()(x))
        x = x + layers.Dense(WIDTH)(hidden)
    return keras.Model(tokens, layers.Dense(VOCABULARY)(layers.LayerNormalization()(x)))


def resnet_50() -> keras.Model:
    return keras.applications.ResNet50(
        weights=None, input_shape=(64, 64, 3), classes=CLASSES, classifier_activation=None
    )


def repeated_batch(model: Any, size: int) -> tf.data.Dataset:
    draw = np.random.default_rng(0)
    *places, classes = model.output_shape[1:]
    shape = (size, *model.input_shape[1:])
    is_text = model.inputs[0].dtype == "int32"
    x = draw.integers(0, classes, shape) if is_text else draw.normal(size=shape)
    y = draw.integers(0, classes, (size, *places))
    tensors = tf.constant(x, model.inputs[0].dtype), tf.constant(y, "int32")
    return tf.data.Dataset.from_tensors(tensors).repeat()
