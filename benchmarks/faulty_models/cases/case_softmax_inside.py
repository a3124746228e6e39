"""Softmax as the activation of hidden layers: the units share 1, and hardly differ."""

import numpy as np

ID = "softmax_inside"
SOURCE = "gradstab"
KIND = "artificial"
FAULT = __doc__
CAUSES = ["saturated-units"]
ALTERNATIVES = [
    "vanishing-signal",
    "vanishing-gradients",
    "output-activation",
    "collapsed-output",
    "learning-rate-too-low",
    "too-few-epochs",
]
LAYER = "hidden_0"
METRIC = "accuracy"
BUDGET = {"epochs": 10, "batch_size": 32}


def data(seed):
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    rows = np.random.default_rng(seed).permutation(len(x))
    x, y = (x[rows] / 16).astype("float32"), y[rows].astype("int32")
    return x[:1200], y[:1200], x[1200:], y[1200:]


def build(faulty):
    import keras

    K = keras.layers
    inner = "softmax" if faulty else "relu"
    model = keras.Sequential(
        [
            keras.Input((64,)),
            K.Dense(64, activation=inner, name="hidden_0"),
            K.Dense(64, activation=inner, name="hidden_1"),
            K.Dense(10, activation="softmax", name="out"),
        ]
    )
    model.compile(
        keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    return model


def score(model, x_val, y_val):
    p = np.nan_to_num(model.predict(x_val, verbose=0))
    return float(np.mean(p.argmax(-1) == y_val))
