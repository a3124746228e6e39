"""What is trained: small nets on images, on text, and on two problems that need a long memory.

Images are scikit-learn's digits (MLP) and Fashion-MNIST (CNN), text is the Python documentation:
characters for the LSTM and the transformer, words for the embedding model, whose gradient is
sparse. A score is in points: accuracy in per cent, or minus one hundred times the loss in nats, of
which a point is 1 % of the perplexity. The problems of memory are those of Hochreiter and
Schmidhuber (1997): which of two symbols came first and which second, in a sequence of 30 (temporal
order, accuracy in per cent), and the sum of two marked numbers out of 20 (adding, minus one hundred
times the mean squared error; a net that knows nothing has 16.7). No sequence is seen twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from harness import text
from keras import layers
from signal_parts.temporal_order import sequences

import gradstab

BATCH = 32
CHARACTERS, WINDOW, WIDTH = 64, 24, 48
WORDS, CONTEXT = 1000, 6
ORDER_LENGTH, ADDING_LENGTH, MEMORY_STEPS = 30, 20, 3000


@dataclasses.dataclass(frozen=True)
class Task:
    """Data and model.

    Attributes:
        train: Inputs and targets.
        validation: The same; rates are chosen by it.
        test: The same; results are reported on it.
        build: Makes the model.
        num_classes: Of each target; 1 where targets are numbers.
        kind: "images", "text", whose score is a loss, "symbols" or "numbers".
        described: What the data is.
        jit_compile: Whether XLA compiles the steps: it runs nets of many small operations three
            times as fast.
    """

    train: tuple[Any, Any]
    validation: tuple[Any, Any]
    test: tuple[Any, Any]
    build: Callable[[], Any]
    num_classes: int
    kind: str
    described: str
    jit_compile: bool = False


def task(name: str, quick: bool) -> Task:
    """Return one of the tasks by name."""
    return TASKS[name](quick)


def _digits(quick: bool) -> Task:
    return _images("digits", (256, 128, 128) if quick else (1200, 200, 360), _mlp)


def _fashion(quick: bool) -> Task:
    # Quickly it has to run where Fashion-MNIST is not installed as well.
    if quick:
        return _images("digits", (256, 128, 128), _cnn)
    return _images("fashion_mnist", (4096, 1000, 2000), _cnn)


def _images(name: str, sizes: tuple[int, int, int], build: Callable[[Any, float], Any]) -> Task:
    datasets = gradstab.data.load(name, batch_size=BATCH, seed=0)
    splits = [
        tuple(part[:size] for part in datasets.arrays(split))
        for split, size in zip(("train", "validation", "test"), sizes, strict=True)
    ]
    told = ", ".join(str(len(split[0])) for split in splits)
    return Task(
        *splits,
        lambda: build(datasets.input_shape, 1 / datasets.pixel_max),
        datasets.num_classes,
        "images",
        f"{name}, the first images of each split: {told}",
    )


def _mlp(shape: Any, rescale: float) -> Any:
    hidden = [layers.Dense(64, "relu", kernel_initializer="he_normal") for _ in range(3)]
    return keras.Sequential(
        [keras.Input(shape), layers.Rescaling(rescale), layers.Flatten(), *hidden, layers.Dense(10)]
    )


def _cnn(shape: Any, rescale: float) -> Any:
    return gradstab.models.cnn_classifier(
        shape,
        10,
        filters=(8, 16, 16, 32),
        dense_units=32,
        kernel_initializer="he_normal",
        rescale=rescale,
    )


def _text(build: Callable[[], Any], quick: bool, jit_compile: bool = False) -> Task:
    sizes = (128, 64, 64) if quick else (4096, 256, 512)
    splits, described = text.characters(WINDOW, CHARACTERS, sizes)
    return Task(*splits, build, CHARACTERS, "text", described, jit_compile)


def _words(quick: bool) -> Task:
    sizes = (256, 128, 128) if quick else (6000, 1000, 2000)
    splits, described = text.words(CONTEXT, WORDS, sizes)
    return Task(*splits, _embedding, WORDS, "text", described)


def _lstm() -> Any:
    return keras.Sequential(
        [
            keras.Input((WINDOW,), dtype="int32"),
            layers.Embedding(CHARACTERS, WIDTH),
            layers.LSTM(WIDTH, return_sequences=True, unroll=True),
            layers.Dense(CHARACTERS),
        ]
    )


def _transformer() -> Any:
    tokens = keras.Input((WINDOW,), dtype="int32")
    x = layers.Embedding(CHARACTERS, WIDTH)(tokens)
    x = x + layers.Embedding(WINDOW, WIDTH, name="places")(keras.ops.arange(WINDOW))
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(4, WIDTH // 4)(y, y, use_causal_mask=True)
        y = layers.LayerNormalization()(x)
        x = x + layers.Dense(WIDTH)(layers.Dense(2 * WIDTH, "gelu")(y))
    return keras.Model(tokens, layers.Dense(CHARACTERS)(layers.LayerNormalization()(x)))


def _embedding() -> Any:
    return keras.Sequential(
        [
            keras.Input((CONTEXT,), dtype="int32"),
            layers.Embedding(WORDS, 32),
            layers.Flatten(),
            layers.Dense(64, "relu", kernel_initializer="he_normal"),
            layers.Dense(WORDS),
        ]
    )


def _temporal_order(quick: bool) -> Task:
    draw = np.random.default_rng(0)
    sizes = (BATCH * 24, 128, 128) if quick else (BATCH * MEMORY_STEPS, 1000, 2000)
    splits = [sequences(draw, size, ORDER_LENGTH) for size in sizes]

    def build() -> Any:
        one_hot = layers.Embedding(6, 6, embeddings_initializer="identity", trainable=False)
        tokens = keras.Input((ORDER_LENGTH,), dtype="int32")
        return keras.Sequential([tokens, one_hot, _memory(), layers.Dense(4)])

    described = f"sequences of {ORDER_LENGTH} symbols"
    return Task(*splits, build, 4, "symbols", described, jit_compile=True)


def _adding(quick: bool) -> Task:
    draw = np.random.default_rng(0)
    sizes = (BATCH * 24, 128, 128) if quick else (BATCH * MEMORY_STEPS, 1000, 2000)

    def split(count: int) -> tuple[Any, Any]:
        marks = np.zeros((count, ADDING_LENGTH), "float32")
        half = ADDING_LENGTH // 2
        for begin in (0, half):
            marks[np.arange(count), begin + draw.integers(0, half, count)] = 1
        numbers = draw.random((count, ADDING_LENGTH), "float32")
        return np.stack([numbers, marks], axis=2), (numbers * marks).sum(axis=1)

    def build() -> Any:
        return keras.Sequential([keras.Input((ADDING_LENGTH, 2)), _memory(), layers.Dense(1)])

    described = f"sequences of {ADDING_LENGTH} marked numbers"
    return Task(*map(split, sizes), build, 1, "numbers", described, jit_compile=True)


def _memory() -> Any:
    return layers.SimpleRNN(50, unroll=True)


TASKS: dict[str, Callable[[bool], Task]] = {
    "MLP": _digits,
    "CNN": _fashion,
    "LSTM": lambda quick: _text(_lstm, quick),
    "transformer": lambda quick: _text(_transformer, quick, jit_compile=True),
    "embedding": _words,
    "temporal order": _temporal_order,
    "adding": _adding,
}
# The rule of `clip="auto"` was chosen on these; its floors are scored on all.
CHOSEN_ON = ("CNN", "MLP", "LSTM")
MEMORY = ("temporal order", "adding")
MODELS = tuple(name for name in TASKS if name not in MEMORY)
