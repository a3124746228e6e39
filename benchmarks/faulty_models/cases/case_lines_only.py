"""No activation between the layers: rings can't be told apart by a line."""

import numpy as np

ID = "lines_only"
SOURCE = "gradstab"
KIND = "artificial"
FAULT = __doc__
CAUSES = ["no-nonlinearity"]
ALTERNATIVES = []
LAYER = "hidden_0"
METRIC = "accuracy"
BUDGET = {"epochs": 15, "batch_size": 32}


def data(seed):
    from sklearn.datasets import make_circles

    x, y = make_circles(800, noise=0.05, factor=0.5, random_state=seed)
    x = x.astype("float32")
    return x[:600], y[:600], x[600:], y[600:]


def build(faulty):
    import keras

    K = keras.layers
    activation = None if faulty else "relu"
    model = keras.Sequential(
        [
            keras.Input((2,)),
            K.Dense(32, activation=activation, name="hidden_0"),
            K.Dense(32, activation=activation, name="hidden_1"),
            K.Dense(1, activation="sigmoid", name="out"),
        ]
    )
    model.compile(keras.optimizers.Adam(1e-2), "binary_crossentropy", metrics=["accuracy"])
    return model


def score(model, x_val, y_val):
    p = np.nan_to_num(model.predict(x_val, verbose=0))[:, 0]
    return float(np.mean((p > 0.5) == y_val))
