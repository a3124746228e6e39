"""What a row of the table is, and how most of them are trained: `fit`, then a score on other data.

A score is in points: accuracy in per cent, or -100 times the logarithm of an error, so that a point
is 1 % of it. Higher is better.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

BATCH = 32
# Training data, then data to score on.
Data = tuple[Any, Any, Any, Any]


@dataclasses.dataclass(frozen=True)
class Row:
    """A healthy training.

    Attributes:
        name: What is trained.
        optimizer: Makes a Keras optimizer.
        train: Trains with the optimizers that a function makes, and returns a score. It takes that
            function, the seed, and whether to train for a moment only.
    """

    name: str
    optimizer: Callable[[], Any]
    train: Callable[[Callable[[], Any], int, bool], float]


def fitted(
    data: Callable[[int], Data],
    build: Callable[[], Any],
    loss: Any,
    score: Callable[[Any, Any, Any], float],
    *,
    epochs: int,
    batch_size: int = BATCH,
) -> Callable[[Callable[[], Any], int, bool], float]:
    """Return what trains a model by `fit`.

    Args:
        data: Returns the data of a seed.
        build: Makes the model.
        loss: As `compile` takes it.
        score: Takes the model, and inputs and targets that it was not trained on.
        epochs: Epochs of a whole run.
        batch_size: Examples of a batch.
    """

    def train(make: Callable[[], Any], seed: int, quick: bool) -> float:
        x, y, other_x, other_y = data(seed)
        model = build()
        model.compile(make(), loss)
        model.fit(x, y, batch_size=batch_size, epochs=1 if quick else epochs, verbose=0)
        return score(model, other_x, other_y)

    return train


def accuracy(model: Any, x: Any, y: Any) -> float:
    """Return the share of right classes, in per cent."""
    return 100.0 * float(np.mean(model.predict(x, verbose=0).argmax(-1) == y))


def binary_accuracy(model: Any, x: Any, y: Any) -> float:
    """Return the share of right yes-no answers, in per cent."""
    return 100.0 * float(np.mean((model.predict(x, verbose=0) > 0.5) == (y > 0.5)))


def fit_of(model: Any, x: Any, y: Any) -> float:
    """Return -100·ln of the mean squared error in units of the targets' variance."""
    error = np.asarray(model.predict(x, verbose=0), "float64").reshape(np.shape(y)) - y
    return points(np.mean(np.square(error)) / np.var(y))


def points(error: Any) -> float:
    """Return -100·ln of an error; one that is not a number counts as 1e12."""
    error = float(error)
    return -100.0 * float(np.log(max(error, 1e-12) if np.isfinite(error) else 1e12))


@functools.cache
def _digits() -> tuple[Any, Any]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return (x / 16).astype("float32"), y.astype("int32")


def digits(seed: int) -> Data:
    """Return scikit-learn's digits as vectors of 64 grey levels in [0, 1]."""
    x, y = _digits()
    order = np.random.default_rng([seed, 7]).permutation(len(x))
    x, y = x[order], y[order]
    return x[:1280], y[:1280], x[1280:], y[1280:]


def digit_images(seed: int) -> Data:
    """Return the digits as images of shape (8, 8, 1)."""
    x, y, other_x, other_y = digits(seed)
    return x.reshape(-1, 8, 8, 1), y, other_x.reshape(-1, 8, 8, 1), other_y


def same(data: Callable[[int], Data]) -> Callable[[int], Data]:
    """Return data whose targets are the inputs."""

    def both(seed: int) -> Data:
        x, _, other_x, _ = data(seed)
        return x, x, other_x, other_x

    return both


def diabetes(scale: float) -> Callable[[int], Data]:
    """Return scikit-learn's diabetes regression with standardized targets times a scale."""

    def load(seed: int) -> Data:
        from sklearn.datasets import load_diabetes

        x, y = load_diabetes(return_X_y=True, scaled=True)
        x = x * np.sqrt(len(x))  # unit variance
        y = (y - y.mean()) / y.std() * scale
        order = np.random.default_rng([seed, 8]).permutation(len(x))
        x, y = x[order].astype("float32"), y[order].astype("float32")[:, None]
        return x[:320], y[:320], x[320:], y[320:]

    return load


def mixed_precision(
    train: Callable[[Callable[[], Any], int, bool], float], policy: str
) -> Callable[[Callable[[], Any], int, bool], float]:
    """Return the same training under a dtype policy."""

    def under(make: Callable[[], Any], seed: int, quick: bool) -> float:
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(policy)
        try:
            return train(make, seed, quick)
        finally:
            keras.config.set_dtype_policy(before)

    return under
