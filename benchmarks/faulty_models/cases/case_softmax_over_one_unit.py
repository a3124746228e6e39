"""A softmax over a single unit, which is 1 for whatever goes in."""

import numpy as np

ID = "softmax_over_one_unit"
SOURCE = "gradstab"
KIND = "artificial"
FAULT = __doc__
CAUSES = ["single-unit-softmax"]
ALTERNATIVES = ["output-activation", "collapsed-output"]
LAYER = "out"
METRIC = "accuracy"
BUDGET = {"epochs": 10, "batch_size": 32}


def data(seed):
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    rows = np.random.default_rng(seed).permutation(len(x))
    x = ((x - x.mean(axis=0)) / x.std(axis=0))[rows].astype("float32")
    return x[:400], y[rows][:400], x[400:], y[rows][400:]


def build(faulty):
    import keras

    K = keras.layers

    model = keras.Sequential(
        [
            keras.Input((30,)),
            K.Dense(32, activation="relu", name="hidden"),
            K.Dense(1, activation="softmax" if faulty else "sigmoid", name="out"),
        ]
    )
    model.compile(keras.optimizers.Adam(1e-3), "binary_crossentropy", metrics=["accuracy"])
    return model


def score(model, x_val, y_val):
    p = np.nan_to_num(model.predict(x_val, verbose=0))[:, 0]
    return float(np.mean((p > 0.5) == y_val))
