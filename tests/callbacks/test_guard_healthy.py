"""Healthy runs of many kinds, of which none may trip: false alarms are the plague of this field."""

import keras
import numpy as np
import pytest

import gradstab
from gradstab.callbacks import DivergenceGuard

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(128, 6)).astype("float32")
Y = X[:, :1]
IMAGES = RNG.uniform(0, 255, (64, 8, 8, 1)).astype("float32")
COIN = RNG.integers(0, 2, (128, 1))


def _mlp(*last, width=16, **arguments):
    return [keras.Input((6,)), L.Dense(width, "relu", **arguments), *(last or [L.Dense(1)])]


RUNS = {
    "a loss that begins huge": (
        lambda: _mlp(L.Dense(1, bias_initializer=keras.initializers.Constant(1e4))), "mse", X, Y,
    ),
    "targets of scale 1e4": (_mlp, "mse", X, Y * 1e4 + 2e4),
    "a loss below zero by nature": (
        lambda: _mlp(L.Dense(1, "exponential")), "poisson", X, np.exp(Y) * 5,
    ),
    "cosine similarity": (lambda: _mlp(L.Dense(3)), "cosine_similarity", X, X[:, :3]),
    "a few dead units": (
        lambda: _mlp(width=64, bias_initializer=keras.initializers.RandomNormal(0, 2.0)),
        "mse", X, Y,
    ),
    "the answer is a constant": (_mlp, "mse", X, Y * 0 + 3),
    "there is nothing to learn": (
        lambda: _mlp(L.Dense(1, kernel_regularizer=keras.regularizers.L1(0.1))), "mse", X,
        RNG.normal(size=(128, 1)),
    ),
    "an output that is rightly zero": (
        lambda: _mlp(L.Dense(1, "relu")), "mse", X, (X[:, :1] > 2.3) * 1.0,
    ),
    "one class out of two": (
        lambda: _mlp(L.Dense(1, "sigmoid")), "binary_crossentropy", X, (X[:, :1] > 2.2) * 1.0,
    ),
    "a last layer that begins as zeros": (
        lambda: _mlp(L.Dense(1, kernel_initializer="zeros")), "mse", X, Y,
    ),
    "fitted perfectly from the start": (
        lambda: [keras.Input((6,)), L.Dense(1, kernel_initializer="zeros")], "mse", X, Y * 0,
    ),
    "raw pixels through BatchNorm": (
        lambda: [
            keras.Input((8, 8, 1)), L.BatchNormalization(), L.Conv2D(4, 3, activation="relu"),
            L.BatchNormalization(), L.Flatten(), L.Dropout(0.3), L.Dense(1, "sigmoid"),
        ],
        "binary_crossentropy", IMAGES * 100, COIN[:64],
    ),
    "overfitting": (
        lambda: _mlp(L.Dense(64, "relu"), L.Dense(2, "softmax"), width=64),
        "sparse_categorical_crossentropy", X[:32], COIN[:32, 0],
    ),
}  # fmt: skip


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("name", RUNS)
def test_a_healthy_run_never_trips(name, ours):
    layers, loss, x, y = RUNS[name]
    keras.utils.set_random_seed(1)
    model = keras.Sequential(layers())
    optimizer = keras.optimizers.Adam(0.01)
    model.compile(gradstab.stabilize(optimizer) if ours else optimizer, loss)
    guard = DivergenceGuard(verbose=False)
    validation = (X[-32:], COIN[-32:, 0]) if name == "overfitting" else None
    history = model.fit(
        x, y, batch_size=8, epochs=12, verbose=0, validation_data=validation, callbacks=[guard]
    )
    assert guard.verdict is None
    assert len(history.epoch) == 12


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("rate", [1e-3, 3e-2])
def test_one_batch_at_a_time_as_in_reinforcement_learning(rate):
    """Targets that move: a run of one step each, whose loss may rise for ever."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential(_mlp())
    model.compile(gradstab.stabilize("adam", learning_rate=rate), "mse")
    guard = DivergenceGuard(verbose=False)
    for scale in range(10):
        model.fit(X[:8], Y[:8] * 10.0**scale, verbose=0, callbacks=[guard])
        assert guard.verdict is None


def test_fine_tuning_what_is_right_already():
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((6,)), L.Dense(1, use_bias=False)])
    model.set_weights([np.eye(6, 1)])
    model.compile(keras.optimizers.SGD(1e-2), "mse")
    guard = DivergenceGuard(verbose=False)
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[guard])
    noisy = Y + RNG.normal(size=Y.shape) * 1e-2
    model.fit(X, noisy, epochs=4, verbose=0, callbacks=[guard])
    assert guard.verdict is None
