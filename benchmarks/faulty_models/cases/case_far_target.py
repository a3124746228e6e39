"""Targets near 100,000 with a deviation of 50: the weights never get there."""

import numpy as np

ID = "far_target"
SOURCE = "gradstab"
KIND = "artificial"
FAULT = __doc__
CAUSES = ["unscaled-target"]
ALTERNATIVES = ["learning-rate-too-low", "too-few-epochs"]
LAYER = None
METRIC = "mae"
BUDGET = {"epochs": 20, "batch_size": 32}


def data(seed):
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True, scaled=False)
    rows = np.random.default_rng(seed).permutation(len(x))
    x = ((x - x.mean(axis=0)) / x.std(axis=0))[rows].astype("float32")
    y = y[rows, None].astype("float32")
    y += 100_000
    return x[:340], y[:340], x[340:], y[340:]


def build(faulty):
    import keras

    K = keras.layers

    model = keras.Sequential(
        [
            keras.Input((10,)),
            K.Dense(32, activation="relu", name="hidden"),
            K.Dense(1, name="out"),
            *([] if faulty else [K.Rescaling(80.0, 100_150.0, name="units")]),
        ]
    )
    model.compile(keras.optimizers.Adam(1e-2), "mse", metrics=["mae"])
    return model


def score(model, x_val, y_val):
    p = np.nan_to_num(model.predict(x_val, verbose=0), nan=1e6)
    return float(np.mean(np.abs(p - y_val)))
