"""Twins for the pictures of rules: a sick run, and the same with the least change that heals it."""

import dataclasses
import functools
from collections.abc import Callable

import keras
import numpy as np
from sklearn.datasets import load_diabetes, make_moons

import gradstab


@dataclasses.dataclass(frozen=True)
class Twin:
    """A picture.

    Attributes:
        sick: Returns model, x, y and arguments of `fit`.
        healthy: The same for the other run.
        names: What the two runs are called.
        kind: `"epochs"`, `"layers"` or `"answers"`, which is a histogram.
        quantity: Name of the log, of the quantity in the samples, or of the answers.
        label: What the vertical axis shows.
        log: Whether the vertical axis is logarithmic.
    """

    sick: Callable
    healthy: Callable
    names: tuple[str, str]
    kind: str = "epochs"
    quantity: str = "accuracy"
    label: str = "accuracy"
    log: bool = False


@functools.cache
def digits():
    """Return images as rows of 64 pixels between 0 and 1, and their labels."""
    loaded = gradstab.data.load("digits")
    x, y = loaded.arrays("train")
    return x.reshape(len(x), -1) / loaded.pixel_max, y


def classifier(
    optimizer=None, *, change=None, depth=2, units=64, activation="relu", kernels="he_normal",
    head="softmax", extra=(), penalty=None, loss="sparse_categorical_crossentropy", last=10,
    dropout=0.0, policy=None, epochs=8, **fit,
):  # fmt: skip
    """Return a run of a dense net on the digits."""

    def run():
        x, y = digits()
        x, y = (x, y) if change is None else change(x.copy(), y.copy())
        hidden = []
        for number in range(depth):
            hidden.append(
                keras.layers.Dense(
                    units[number] if isinstance(units, tuple) else units,
                    activation=activation, name=f"hidden_{number + 1}",
                    kernel_initializer=kernels if isinstance(kernels, str) else kernels(),
                    kernel_regularizer=penalty, dtype=policy,
                )
            )  # fmt: skip
            hidden.extend([keras.layers.Dropout(dropout)] if dropout else [])
        out = keras.layers.Dense(last, activation=head, name="out", dtype=policy and "float32")
        model = keras.Sequential([keras.layers.Input(x.shape[1:]), *hidden, out, *extra])
        chosen = keras.optimizers.SGD(0.1) if optimizer is None else optimizer()
        model.compile(chosen, loss, metrics=["accuracy"])
        return model, x, y, {"epochs": epochs, **fit}

    return run


def regressor(optimizer, *, head=None, change=None, standard=True, epochs=15):
    """Return a run on the progression of diabetes, by default in units of its deviation."""

    def run():
        x, y = load_diabetes(return_X_y=True)
        x = (x - x.mean(0)) / x.std(0)
        y = (y - y.mean()) / y.std() if standard else y
        layers = [
            keras.layers.Input(x.shape[1:]),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(1, activation=head),
        ]
        model = keras.Sequential(layers)
        # R²: 1 is perfect, 0 is what the mean gets.
        model.compile(optimizer(), "mse", metrics=[keras.metrics.R2Score(name="r2")])
        return model, x, y[:, None], {"epochs": epochs}

    return run


def moons(activation):
    """Return a run on two half-moons that no straight line tells apart."""

    def run():
        x, y = make_moons(1000, noise=0.1, random_state=0)
        layers = [keras.layers.Input((2,))]
        layers += [keras.layers.Dense(32, activation=activation) for _ in range(2)]
        model = keras.Sequential([*layers, keras.layers.Dense(1, activation="sigmoid")])
        model.compile(keras.optimizers.Adam(1e-2), "binary_crossentropy", metrics=["accuracy"])
        return model, x, y, {"epochs": 8}

    return run


def normal(deviation):
    return lambda: keras.initializers.RandomNormal(stddev=deviation)


def sgd(rate, **more):
    return lambda: keras.optimizers.SGD(rate, **more)


def adam(rate):
    return lambda: keras.optimizers.Adam(rate)


def one_nan(x, y):
    x[7] = np.nan
    return x, y


def one_bad_batch(x, y):
    x[640:672] *= 10
    y[640:672] = (y[640:672] + 1) % 10
    return x, y


def shuffled_labels(x, y):
    return x, np.random.default_rng(0).permutation(y)


HEALTHY = classifier()
DEEP = {"depth": 12, "units": 32, "epochs": 4}
GRADIENT = {"kind": "layers", "quantity": "grad_norm", "label": "gradient norm", "log": True}
SIGNAL = {
    "kind": "layers", "quantity": "activation_deviation", "label": "deviation of outputs",
    "log": True,
}  # fmt: skip
TWINS = {
    "nonfinite-data": Twin(
        classifier(change=one_nan), HEALTHY, ("one NaN row", "without it"),
        quantity="loss", label="loss",
    ),
    "unscaled-input": Twin(
        classifier(sgd(0.01), change=lambda x, y: (x * 255, y)), classifier(sgd(0.01), epochs=8),
        ("pixels 0..255", "pixels 0..1"),
    ),
    "unscaled-target": Twin(
        regressor(adam(1e-3), standard=False), regressor(adam(1e-3)),
        ("targets 25..346", "mean 0, deviation 1"), quantity="r2", label="R²",
    ),
    "label-encoding": Twin(
        classifier(change=shuffled_labels), HEALTHY,
        ("labels shuffled alone", "rows with their labels"),
    ),
    "double-softmax": Twin(
        classifier(extra=[keras.layers.Softmax()]), HEALTHY, ("two softmaxes", "one"),
        kind="answers", quantity="largest output of a row", label="rows",
    ),
    "output-activation": Twin(
        regressor(adam(1e-2), head="relu"), regressor(adam(1e-2)),
        ("relu at the end", "nothing at the end"),
        quantity="r2", label="R²",
    ),
    "constant-initialization": Twin(
        classifier(adam(1e-3), kernels=lambda: keras.initializers.Constant(0.05)),
        classifier(adam(1e-3)),
        ("constant kernels", "he_normal"),
    ),
    "kernels-too-small": Twin(
        classifier(depth=4, kernels=normal(0.001)), classifier(depth=4),
        ("deviation 0.001", "he_normal"),
    ),
    "kernels-too-large": Twin(
        classifier(depth=4, kernels=normal(1.0)), classifier(depth=4), ("deviation 1", "he_normal"),
    ),
    "exploding-signal": Twin(
        classifier(sgd(0.0), kernels=normal(1.0), **DEEP), classifier(sgd(0.0), **DEEP),
        ("kernels of deviation 1", "he_normal"), **SIGNAL,
    ),
    "saturated-units": Twin(
        classifier(depth=4, activation="tanh", kernels=normal(1.0)),
        classifier(depth=4, activation="tanh", kernels="glorot_uniform"),
        ("kernels of deviation 1", "glorot_uniform"), kind="layers",
        quantity="activation_saturated", label="share at a bound",
    ),
    "dead-units": Twin(
        classifier(sgd(3.0), depth=4), classifier(depth=4), ("rate 3", "rate 0.1"),
        kind="layers", quantity="activation_dead", label="share of dead units",
    ),
    "no-nonlinearity": Twin(moons(None), moons("relu"), ("no activation", "relu")),
    "vanishing-gradients": Twin(
        classifier(kernels="glorot_uniform", activation="sigmoid", **DEEP), classifier(**DEEP),
        ("sigmoid", "relu, he_normal"), **GRADIENT,
    ),
    "exploding-gradients": Twin(
        classifier(sgd(0.0), kernels=normal(1.0), **DEEP), classifier(sgd(0.0), **DEEP),
        ("kernels of deviation 1", "he_normal"), **GRADIENT,
    ),
    "learning-rate-too-high": Twin(
        classifier(adam(0.3)), classifier(adam(1e-3)), ("Adam at 0.3", "Adam at 0.001")
    ),
    "learning-rate-too-low": Twin(
        classifier(sgd(1e-4)), HEALTHY, ("SGD at 0.0001", "SGD at 0.1")
    ),
    "too-few-epochs": Twin(
        classifier(sgd(0.02), epochs=3), classifier(sgd(0.02), epochs=20), ("3 epochs", "20 epochs")
    ),
    "batch-size": Twin(
        classifier(batch_size=1024), HEALTHY, ("batches of 1024", "batches of 32")
    ),
    "loss-spikes": Twin(
        classifier(sgd(0.1, momentum=0.9), change=one_bad_batch, shuffle=False),
        classifier(
            lambda: gradstab.stabilize(sgd(0.1, momentum=0.9)()),
            change=one_bad_batch, shuffle=False,
        ),
        ("one bad batch", "the same with stabilize"),
    ),
    "collapsed-output": Twin(
        classifier(sgd(3.0), depth=4), classifier(depth=4), ("rate 3", "rate 0.1"),
        kind="answers", quantity="largest output of a row", label="rows",
    ),
    "over-regularized": Twin(
        classifier(penalty=keras.regularizers.L2(0.3)),
        classifier(penalty=keras.regularizers.L2(1e-4)), ("L2(0.3)", "L2(0.0001)"),
    ),
    "bottleneck": Twin(
        classifier(units=(1, 64)), HEALTHY, ("a layer of 1 unit", "64 units")
    ),
    "float16-overflow": Twin(
        classifier(policy="mixed_float16", change=lambda x, y: (x * 65535, y)),
        classifier(policy="mixed_float16"), ("pixels 0..65535", "pixels 0..1"),
    ),
}  # fmt: skip
