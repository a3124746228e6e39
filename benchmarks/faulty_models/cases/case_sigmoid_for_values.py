"""A sigmoid, which ends at 1, in front of targets of some hundreds."""

import numpy as np

ID = "sigmoid_for_values"
SOURCE = "gradstab"
KIND = "artificial"
FAULT = __doc__
CAUSES = ["output-activation"]
ALTERNATIVES = ["unscaled-target"]
LAYER = "out"
METRIC = "mae"
BUDGET = {"epochs": 40, "batch_size": 32}


def data(seed):
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True, scaled=False)
    rows = np.random.default_rng(seed).permutation(len(x))
    x = ((x - x.mean(axis=0)) / x.std(axis=0))[rows].astype("float32")
    y = y[rows, None].astype("float32")
    return x[:340], y[:340], x[340:], y[340:]


def build(faulty):
    import keras

    K = keras.layers

    model = keras.Sequential(
        [
            keras.Input((10,)),
            K.Dense(32, activation="relu", name="hidden"),
            K.Dense(1, activation="sigmoid" if faulty else None, name="out"),
        ]
    )
    model.compile(keras.optimizers.Adam(3e-2), "mse", metrics=["mae"])
    return model


def score(model, x_val, y_val):
    p = np.nan_to_num(model.predict(x_val, verbose=0), nan=1e6)
    return float(np.mean(np.abs(p - y_val)))
