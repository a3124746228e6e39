"""One measurement of one row is NaN."""

import numpy as np

ID = "a_broken_row"
SOURCE = "gradstab"
KIND = "artificial"
FAULT = __doc__
CAUSES = ["nonfinite-data"]
ALTERNATIVES = ["nonfinite-forward", "nonfinite-gradients"]
LAYER = None
METRIC = "accuracy"
BUDGET = {"epochs": 10, "batch_size": 32}


def data(seed, faulty):
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    rows = np.random.default_rng(seed).permutation(len(x))
    x = ((x - x.mean(axis=0)) / x.std(axis=0))[rows].astype("float32")
    if faulty:
        x[17, 3] = np.nan
    return x[:400], y[rows][:400], x[400:], y[rows][400:]


def build(faulty):
    import keras

    K = keras.layers

    model = keras.Sequential(
        [
            keras.Input((30,)),
            K.Dense(32, activation="relu", name="hidden"),
            K.Dense(1, activation="sigmoid", name="out"),
        ]
    )
    model.compile(keras.optimizers.Adam(1e-3), "binary_crossentropy", metrics=["accuracy"])
    return model


def score(model, x_val, y_val):
    p = np.nan_to_num(model.predict(x_val, verbose=0))[:, 0]
    return float(np.mean((p > 0.5) == y_val))
