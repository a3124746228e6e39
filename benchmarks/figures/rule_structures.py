"""Twins for the pictures of rules on structure, loss, labels and data."""

import keras
import numpy as np
from keras import ops
from rule_runs import HEALTHY, Twin, adam, classifier, digits, normal, regressor, sgd
from sklearn.datasets import make_moons

import gradstab


def stacked(*layers, head="softmax", optimizer=None, epochs=8, **fit):
    """Return a run on the digits of a net made of functions that make layers."""

    def run():
        x, y = digits()
        out = keras.layers.Dense(10, activation=head, name="out")
        model = keras.Sequential([keras.layers.Input((64,)), *(make() for make in layers), out])
        chosen = keras.optimizers.SGD(0.1) if optimizer is None else optimizer()
        model.compile(chosen, "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model, x, y, {"epochs": epochs, **fit}

    return run


def dense(units=64, activation="relu"):
    return lambda: keras.layers.Dense(units, activation, kernel_initializer="he_normal")


def applied(function, size=64):
    """Return a function that makes a layer without weights, whose output has `size` features."""
    return lambda: keras.layers.Lambda(function, output_shape=(size,))


def one_hot_of_largest(x):
    return ops.one_hot(ops.argmax(x, axis=-1), 64)


def mixed_rows(x):
    return ops.reshape(ops.transpose(x), ops.shape(x))


def two_classes(head="sigmoid", loss="binary_crossentropy", labels=(0, 1)):
    """Return a run on two half-moons with one unit at the end."""

    def run():
        x, y = make_moons(1000, noise=0.1, random_state=0)
        layers = [keras.layers.Input((2,)), keras.layers.Dense(32, activation="relu")]
        model = keras.Sequential([*layers, keras.layers.Dense(1, activation=head)])
        model.compile(keras.optimizers.Adam(1e-2), loss, metrics=["accuracy"])
        return model, x, np.array(labels, "float32")[y][:, None], {"epochs": 8}

    return run


def scored(metric):
    """Return a run on the progression of diabetes, shown by a metric."""

    def run():
        model, x, y, fit = regressor(adam(1e-2))()
        model.compile(keras.optimizers.Adam(1e-2), "mse", metrics=[metric()])
        return model, x, y, fit

    return run


def sums(return_sequences):
    """Return a run on the sums of eight random numbers."""

    def run():
        x = np.random.default_rng(0).normal(size=(1000, 8, 1)).astype("float32")
        layers = [
            keras.layers.Input((8, 1)),
            keras.layers.GRU(16, return_sequences=return_sequences),
        ]
        model = keras.Sequential([*layers, keras.layers.Dense(1)])
        model.compile(keras.optimizers.Adam(1e-2), "mse")
        return model, x, x.sum(axis=1), {"epochs": 12}

    return run


def deep(is_normalized):
    """Return a run of twelve layers with small kernels."""
    layers = []
    for _ in range(12):
        layers.append(lambda: keras.layers.Dense(32, kernel_initializer=normal(0.05)()))
        layers.extend([keras.layers.BatchNormalization] if is_normalized else [])
        layers.append(keras.layers.ReLU)
    return stacked(*layers)


def frozen(names):
    """Return the healthy run with some layers frozen."""

    def run():
        model, x, y, fit = HEALTHY()
        for name in names:
            model.get_layer(name).trainable = False
        model.compile(keras.optimizers.SGD(0.1), model.loss, metrics=["accuracy"])
        return model, x, y, fit

    return run


def held_out(rows=None, in_order_of_class=False):
    """Return a run that is scored on held-out rows."""

    def run():
        model, x, y, fit = HEALTHY()
        if in_order_of_class:
            order = np.argsort(y, kind="stable")
            return model, x[order], y[order], {**fit, "validation_split": 0.2}
        loaded = gradstab.data.load("digits")
        images, labels = loaded.arrays("test")
        test = (images.reshape(len(images), -1) / loaded.pixel_max, labels)
        return model, x[:rows], y[:rows], {**fit, "validation_data": test, "batch_size": 8}

    return run


def small_loss(scale):
    """Return a run in float16 whose loss is weighted by 1e-6."""

    def run():
        model, x, y, fit = classifier(policy="mixed_float16")()
        optimizer = keras.optimizers.Adam(1e-3, epsilon=1e-12)
        if scale:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        loss = "sparse_categorical_crossentropy"
        model.compile(optimizer, loss, metrics=["accuracy"], loss_weights=1e-6)
        return model, x, y, fit

    return run


def accuracy():
    return keras.metrics.Accuracy(name="metric")


def explained():
    return keras.metrics.R2Score(name="metric")


STRUCTURES = {
    "class-imbalance": Twin(
        held_out(in_order_of_class=True), held_out(), ("sorted by class", "shuffled"),
        quantity="val_accuracy", label="validation accuracy",
    ),
    "constant-data": Twin(
        classifier(change=lambda x, y: (x * 0, y)), HEALTHY, ("images of zeros", "the images"),
    ),
    "disconnected-variables": Twin(
        stacked(dense(), applied(one_hot_of_largest)), stacked(dense()),
        ("argmax in between", "without argmax"),
    ),
    "float16-underflow": Twin(
        small_loss(scale=False), small_loss(scale=True), ("float16", "with a loss scale"),
    ),
    "frozen-model": Twin(
        frozen(["hidden_1", "hidden_2", "out"]), HEALTHY, ("all layers frozen", "none frozen"),
    ),
    "label-range": Twin(
        two_classes(labels=(-1, 1)), two_classes(), ("labels -1 and 1", "labels 0 and 1"),
        quantity="loss", label="loss",
    ),
    "logits-without-from-logits": Twin(
        classifier(head=None),
        classifier(head=None, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)),
        ("probabilities expected", "from_logits=True"),
    ),
    "loss-mismatch": Twin(
        two_classes(loss="categorical_crossentropy"), two_classes(),
        ("categorical", "binary cross-entropy"),
    ),
    "metric-mismatch": Twin(
        scored(accuracy), scored(explained), ("accuracy", "R²"), quantity="metric", label="metric",
    ),
    "missing-layer": Twin(
        sums(return_sequences=True), sums(return_sequences=False),
        ("all time steps", "the last time step"), quantity="loss", label="loss", log=True,
    ),
    "missing-normalization": Twin(
        deep(is_normalized=False), deep(is_normalized=True), ("twelve layers", "with BatchNorm"),
    ),
    "nonfinite-forward": Twin(
        stacked(dense(), applied(ops.log)),
        stacked(dense(), applied(lambda x: ops.log(ops.maximum(x, 1e-2)))),
        ("log of 0", "log of 0.01 at least"), quantity="loss", label="loss",
    ),
    "nonfinite-gradients": Twin(
        stacked(dense(), applied(ops.sqrt)),
        stacked(dense(), applied(lambda x: ops.sqrt(x + 1e-6))),
        ("root of 0", "root of 1e-6 at least"), quantity="loss", label="loss",
    ),
    "optimizer": Twin(
        classifier(lambda: keras.optimizers.Adadelta(1e-3)), classifier(adam(1e-3)),
        ("Adadelta", "Adam"),
    ),
    "single-unit-softmax": Twin(
        two_classes(head="softmax"), two_classes(), ("softmax", "sigmoid"),
    ),
    "too-little-data": Twin(
        held_out(rows=30), held_out(), ("30 rows", "1,257 rows"),
        quantity="val_accuracy", label="test accuracy",
    ),
    "vanishing-signal": Twin(
        classifier(sgd(0.0), kernels="glorot_uniform", activation="sigmoid", depth=12, units=32,
                   epochs=1),
        classifier(sgd(0.0), depth=12, units=32, epochs=1), ("sigmoid", "relu, he_normal"),
        kind="answers", quantity="largest output of a row, before training", label="rows",
    ),
    "wrong-shape": Twin(
        stacked(applied(mixed_rows), dense()), stacked(dense()),
        ("rows mixed by a reshape", "rows kept apart"),
    ),
}  # fmt: skip
