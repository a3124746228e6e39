"""What is trained: a CNN on Fashion-MNIST, and two language models on the Python documentation.

The text comes with Python: the help topics of `pydoc_data.topics`, in an order that their names
decide, character by character. A score is in points: accuracy in per cent, or minus one hundred
times the loss in nats, of which a point is 1 % of the perplexity.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
from harness import text
from keras import layers

import gradstab

# Characters that are told apart; all others are one more.
VOCABULARY = 80
WINDOW = 48
WIDTH = 64


@dataclasses.dataclass(frozen=True)
class Task:
    """Data and model.

    Attributes:
        train: Inputs and targets.
        validation: The same; rates are chosen by it.
        test: The same; results are reported on it.
        build: Makes the model.
        score: Gives the score from what `evaluate` returns, higher is better.
        described: What the data is.
        batch_size: Examples in a batch.
        epochs: Length of a run.
    """

    train: tuple[Any, Any]
    validation: tuple[Any, Any]
    test: tuple[Any, Any]
    build: Callable[[], Any]
    score: Callable[[dict[str, float]], float]
    described: str
    batch_size: int
    epochs: int

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch; what is left over is left out."""
        return len(self.train[0]) // self.batch_size


def task(name: str, quick: bool) -> Task:
    """Return one of the tasks by name."""
    return _images(quick) if name == "CNN" else _text(name, quick)


def _images(quick: bool) -> Task:
    sizes = (256, 128, 128) if quick else (4096, 2000, 4000)
    # Quickly it has to run where Fashion-MNIST is not installed as well.
    name = "digits" if quick else "fashion_mnist"
    datasets = gradstab.data.load(name, batch_size=64, seed=0)
    splits = [
        tuple(part[:size] for part in datasets.arrays(split))
        for split, size in zip(("train", "validation", "test"), sizes, strict=True)
    ]

    def build() -> Any:
        return gradstab.models.cnn_classifier(
            datasets.input_shape,
            datasets.num_classes,
            filters=(16, 32, 32, 64),
            dense_units=64,
            kernel_initializer="he_normal",
            rescale=1 / datasets.pixel_max,
        )

    sizes_told = ", ".join(str(len(split[0])) for split in splits)
    return Task(
        *splits,
        build,
        lambda found: 100 * found["accuracy"],
        f"{name}, the first images of each split: {sizes_told}",
        64,
        1 if quick else 8,
    )


def _text(name: str, quick: bool) -> Task:
    sizes = (128, 64, 64) if quick else (2048, 512, 1024)
    splits, described = text.characters(WINDOW, VOCABULARY, sizes)
    return Task(
        *splits,
        _transformer if name == "transformer" else _lstm,
        lambda found: -100 * found["loss"],
        described,
        32,
        1 if quick else 8,
    )


def _transformer() -> Any:
    tokens = keras.Input((WINDOW,), dtype="int32")
    places = keras.ops.arange(WINDOW)
    x = layers.Embedding(VOCABULARY, WIDTH)(tokens)
    x = x + layers.Embedding(WINDOW, WIDTH, name="places")(places)
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        attention = layers.MultiHeadAttention(4, WIDTH // 4)
        x = x + attention(y, y, use_causal_mask=True)
        y = layers.LayerNormalization()(x)
        x = x + layers.Dense(WIDTH)(layers.Dense(4 * WIDTH, "gelu")(y))
    return keras.Model(tokens, layers.Dense(VOCABULARY)(layers.LayerNormalization()(x)))


def _lstm() -> Any:
    return keras.Sequential(
        [
            keras.Input((WINDOW,), dtype="int32"),
            layers.Embedding(VOCABULARY, WIDTH),
            layers.LSTM(2 * WIDTH, return_sequences=True),
            layers.Dense(VOCABULARY),
        ]
    )
