"""Nets that `fit` trains: images, sequences, embeddings and regressions."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from harness import text
from keras import layers

from healthy_parts.rows import (
    Data,
    Row,
    accuracy,
    binary_accuracy,
    diabetes,
    digit_images,
    digits,
    fit_of,
    fitted,
    mixed_precision,
    points,
    same,
)

CHARACTERS, WINDOW = 64, 16
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _mlp() -> Any:
    hidden = [layers.Dense(64, "relu"), layers.Dropout(0.2), layers.Dense(32, "relu")]
    return keras.Sequential([keras.Input((64,)), *hidden, layers.Dense(10)])


def _sigmoid_net() -> Any:
    hidden = layers.Dense(48, "sigmoid")
    return keras.Sequential([keras.Input((64,)), hidden, layers.Dense(10)])


def _cnn(normalized: bool = False) -> Any:
    def block(filters: int) -> list[Any]:
        after = [layers.BatchNormalization()] if normalized else []
        conv = layers.Conv2D(filters, 3, padding="same", use_bias=not normalized)
        return [conv, *after, layers.ReLU(), layers.MaxPooling2D()]

    head = [layers.Flatten(), layers.Dense(32, "relu"), layers.Dense(10)]
    return keras.Sequential([keras.Input((8, 8, 1)), *block(12), *block(24), *head])


def _resnet() -> Any:
    images = keras.Input((8, 8, 1))
    x = layers.Conv2D(12, 3, padding="same")(images)
    for _ in range(3):
        y = layers.ReLU()(layers.BatchNormalization()(x))
        y = layers.Conv2D(12, 3, padding="same", use_bias=False)(y)
        y = layers.ReLU()(layers.BatchNormalization()(y))
        x = layers.Add()([x, layers.Conv2D(12, 3, padding="same")(y)])
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.BatchNormalization()(x)))
    return keras.Model(images, layers.Dense(10)(x))


def _characters(seed: int) -> Data:
    splits, _ = text.characters(WINDOW, CHARACTERS, (1024, 64, 256))
    (x, y), _, (other_x, other_y) = splits
    return x, y, other_x, other_y


def _perplexity(model: Any, x: Any, y: Any) -> float:
    """Return -100 times the loss in nats."""
    logits = model.predict(x, verbose=0).astype("float64")
    logits -= logits.max(-1, keepdims=True)
    logarithms = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return 100.0 * float(np.mean(np.take_along_axis(logarithms, y[..., None], -1)))


def _recurrent(kind: Any) -> Any:
    return keras.Sequential(
        [
            keras.Input((WINDOW,), dtype="int32"),
            layers.Embedding(CHARACTERS, 32),
            kind(48, return_sequences=True, unroll=True),
            layers.Dense(CHARACTERS),
        ]
    )


def _transformer() -> Any:
    tokens = keras.Input((WINDOW,), dtype="int32")
    x = layers.Embedding(CHARACTERS, 32)(tokens)
    x = x + layers.Embedding(WINDOW, 32, name="places")(keras.ops.arange(WINDOW))
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(4, 8)(y, y, use_causal_mask=True)
        x = x + layers.Dense(32)(layers.Dense(64, "gelu")(layers.LayerNormalization()(x)))
    return keras.Model(tokens, layers.Dense(CHARACTERS)(layers.LayerNormalization()(x)))


def _sums(seed: int) -> Data:
    draw = np.random.default_rng([seed, 1])
    x = draw.standard_normal((1600, 12, 1)).astype("float32")
    y = (x.sum((1, 2)) / np.sqrt(12)).astype("float32")[:, None]
    return x[:1200], y[:1200], x[1200:], y[1200:]


def _gru() -> Any:
    inside = layers.GRU(24, unroll=True)
    return keras.Sequential([keras.Input((12, 1)), inside, layers.Dense(1)])


def _relu_lstm() -> Any:
    inside = layers.LSTM(16, activation="relu", unroll=True)
    return keras.Sequential([keras.Input((12, 1)), inside, layers.Dense(1)])


def _topics(seed: int) -> Data:
    world = np.random.default_rng(7)
    topics = np.exp(1.2 * world.standard_normal((4, 800))) / np.arange(3, 803)
    topics /= topics.sum(1, keepdims=True)
    draw = np.random.default_rng([seed, 2])
    y = draw.integers(0, 4, 2000).astype("int32")
    x = np.stack([draw.choice(800, 20, p=topics[each]) for each in y]).astype("int32")
    return x[:1400], y[:1400], x[1400:], y[1400:]


def _bag_of_words() -> Any:
    words = layers.Embedding(800, 16)
    tokens = keras.Input((20,), dtype="int32")
    return keras.Sequential([tokens, words, layers.GlobalAveragePooling1D(), layers.Dense(4)])


def _ratings(seed: int) -> Data:
    draw = np.random.default_rng([seed, 3])
    users, items = draw.standard_normal((60, 3)), draw.standard_normal((80, 3))
    pairs = np.stack([draw.integers(0, 60, 3000), draw.integers(0, 80, 3000)], 1).astype("int32")
    y = (users[pairs[:, 0]] * items[pairs[:, 1]]).sum(1) + 0.1 * draw.standard_normal(3000)
    y = y.astype("float32")[:, None]
    return pairs[:2400], y[:2400], pairs[2400:], y[2400:]


def _factors() -> Any:
    pairs = keras.Input((2,), dtype="int32")
    user = layers.Embedding(60, 8)(pairs[:, 0])
    item = layers.Embedding(80, 8)(pairs[:, 1])
    return keras.Model(pairs, layers.Dot(1)([user, item]))


def _autoencoder() -> Any:
    sizes = [layers.Dense(48, "relu"), layers.Dense(10), layers.Dense(48, "relu")]
    return keras.Sequential([keras.Input((64,)), *sizes, layers.Dense(64)])


def _image_autoencoder() -> Any:
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.GaussianNoise(0.1),
            layers.Conv2D(8, 3, 2, "same", activation="relu"),
            layers.Conv2D(4, 3, 2, "same", activation="relu"),
            layers.Conv2DTranspose(8, 3, 2, "same", activation="relu"),
            layers.Conv2DTranspose(1, 3, 2, "same", activation="sigmoid"),
        ]
    )


def _regression(initializer: str = "glorot_uniform") -> Any:
    hidden = layers.Dense(32, "relu")
    last = layers.Dense(1, kernel_initializer=initializer)
    return keras.Sequential([keras.Input((10,)), hidden, last])


def _linear(initializer: str = "glorot_uniform") -> Any:
    return keras.Sequential([keras.Input((10,)), layers.Dense(1, kernel_initializer=initializer)])


def _iris(seed: int) -> Data:
    from sklearn.datasets import load_iris

    x, y = load_iris(return_X_y=True)
    order = np.random.default_rng([seed, 4]).permutation(len(x))
    x, y = x[order].astype("float32"), y[order].astype("float32")[:, None]
    return x[:120], y[:120], x[120:], y[120:]


def _iris_net() -> Any:
    hidden = [layers.Dense(100, "relu"), layers.Dense(100, "relu")]
    return keras.Sequential([keras.Input((4,)), *hidden, layers.Dense(1)])


def _rare(seed: int) -> Data:
    draw = np.random.default_rng([seed, 5])
    y = (draw.random(3000) < 0.04).astype("float32")
    x = draw.standard_normal((3000, 8)) + 2.1 * y[:, None] * np.array([1, -1, 1, -1, 1, 0, 0, 0])
    x, y = x.astype("float32"), y[:, None]
    return x[:2000], y[:2000], x[2000:], y[2000:]


def _rare_net() -> Any:
    hidden = layers.Dense(16, "relu")
    return keras.Sequential([keras.Input((8,)), hidden, layers.Dense(1, "sigmoid")])


def _spread(y: Any, outputs: Any) -> Any:
    """Return the negative log-density of a Gaussian, of which a small one is negative."""
    mean, log_deviation = outputs[:, :1], outputs[:, 1:]
    return keras.ops.mean(0.5 * ((y - mean) * keras.ops.exp(-log_deviation)) ** 2 + log_deviation)


def _narrow(seed: int) -> Data:
    draw = np.random.default_rng([seed, 6])
    x = draw.uniform(-1, 1, (1500, 1)).astype("float32")
    y = (0.3 * np.sin(3 * x) + 0.02 * draw.standard_normal(x.shape)).astype("float32")
    return x[:1200], y[:1200], x[1200:], y[1200:]


def _spread_net() -> Any:
    hidden = layers.Dense(32, "tanh")
    return keras.Sequential([keras.Input((1,)), hidden, layers.Dense(2)])


def _spread_score(model: Any, x: Any, y: Any) -> float:
    return -100.0 * float(_spread(y, model.predict(x, verbose=0)))


def _mean_error(model: Any, x: Any, y: Any) -> float:
    return points(np.mean(np.abs(model.predict(x, verbose=0) - y)) / np.std(y))


_SGD, _ADAM = keras.optimizers.SGD, keras.optimizers.Adam

ROWS = [
    Row("MLP", lambda: _ADAM(1e-3), fitted(digits, _mlp, CROSS_ENTROPY, accuracy, epochs=15)),
    Row(
        "MLP",
        lambda: _SGD(0.05, momentum=0.9),
        fitted(digits, _mlp, CROSS_ENTROPY, accuracy, epochs=15),
    ),
    Row(
        "MLP",
        lambda: keras.optimizers.Lion(3e-4),
        fitted(digits, _mlp, CROSS_ENTROPY, accuracy, epochs=15),
    ),
    Row(
        "MLP",
        lambda: keras.optimizers.Nadam(2e-3),
        fitted(digits, _mlp, CROSS_ENTROPY, accuracy, epochs=15),
    ),
    Row(
        "MLP, batches of two",
        lambda: _SGD(0.02),
        fitted(digits, _mlp, CROSS_ENTROPY, accuracy, epochs=2, batch_size=2),
    ),
    Row(
        "one sigmoid layer",
        lambda: _ADAM(5e-3),
        fitted(digits, _sigmoid_net, CROSS_ENTROPY, accuracy, epochs=12),
    ),
    Row(
        "CNN",
        lambda: keras.optimizers.RMSprop(1e-3),
        fitted(digit_images, _cnn, CROSS_ENTROPY, accuracy, epochs=8),
    ),
    Row(
        "CNN, mixed_float16",
        lambda: _ADAM(1e-3),
        mixed_precision(
            fitted(digit_images, _cnn, CROSS_ENTROPY, accuracy, epochs=4), "mixed_float16"
        ),
    ),
    Row(
        "CNN, BatchNorm",
        lambda: _SGD(0.05, momentum=0.9, nesterov=True),
        fitted(digit_images, lambda: _cnn(True), CROSS_ENTROPY, accuracy, epochs=8),
    ),
    Row(
        "ResNet",
        lambda: keras.optimizers.AdamW(2e-3, weight_decay=0.01),
        fitted(digit_images, _resnet, CROSS_ENTROPY, accuracy, epochs=6),
    ),
    Row(
        "transformer",
        lambda: keras.optimizers.AdamW(2e-3, weight_decay=0.01),
        fitted(_characters, _transformer, CROSS_ENTROPY, _perplexity, epochs=6),
    ),
    Row(
        "LSTM, characters",
        lambda: _ADAM(5e-3),
        fitted(_characters, lambda: _recurrent(layers.LSTM), CROSS_ENTROPY, _perplexity, epochs=6),
    ),
    Row(
        "GRU, running sums",
        lambda: _ADAM(5e-3),
        fitted(_sums, _gru, "mse", fit_of, epochs=8),
    ),
    Row(
        "LSTM with relu, running sums",
        lambda: _ADAM(3e-3),
        fitted(_sums, _relu_lstm, "mse", fit_of, epochs=8),
    ),
    Row(
        "embedding, topics",
        lambda: _ADAM(1e-2),
        fitted(_topics, _bag_of_words, CROSS_ENTROPY, accuracy, epochs=6),
    ),
    Row(
        "embedding, ratings",
        lambda: keras.optimizers.Adagrad(0.3),
        fitted(_ratings, _factors, "mse", fit_of, epochs=15),
    ),
    Row(
        "autoencoder",
        lambda: _ADAM(2e-3),
        fitted(same(digits), _autoencoder, "mse", fit_of, epochs=12),
    ),
    Row(
        "image autoencoder, noise",
        lambda: _ADAM(3e-3),
        fitted(same(digit_images), _image_autoencoder, "binary_crossentropy", fit_of, epochs=8),
    ),
    Row(
        "regression, targets of 1e-3",
        lambda: _ADAM(1e-3),
        fitted(diabetes(1e-3), _regression, "mse", fit_of, epochs=30),
    ),
    Row(
        "regression, targets of 1e4",
        lambda: _ADAM(1.0),
        fitted(diabetes(1e4), _regression, "mse", fit_of, epochs=30),
    ),
    Row(
        "regression from zero, targets of 100",
        lambda: _ADAM(1.0),
        fitted(diabetes(100.0), lambda: _linear("zeros"), "mse", fit_of, epochs=8),
    ),
    Row(
        "linear regression",
        lambda: _SGD(0.05),
        fitted(diabetes(1.0), _linear, "mse", fit_of, epochs=20),
    ),
    Row(
        "regression, absolute error",
        lambda: _SGD(0.01, momentum=0.9),
        fitted(diabetes(1.0), _regression, "mae", _mean_error, epochs=20),
    ),
    Row("iris as numbers", lambda: _SGD(0.05), fitted(_iris, _iris_net, "mse", fit_of, epochs=20)),
    Row(
        "rare class",
        lambda: _ADAM(3e-3),
        fitted(_rare, _rare_net, "binary_crossentropy", binary_accuracy, epochs=6),
    ),
    Row(
        "mean and deviation, negative loss",
        lambda: _ADAM(1e-2),
        fitted(_narrow, _spread_net, _spread, _spread_score, epochs=15),
    ),
    Row(
        "mean and deviation, negative loss",
        lambda: _SGD(3e-3, momentum=0.9),
        fitted(_narrow, _spread_net, _spread, _spread_score, epochs=15),
    ),
]
