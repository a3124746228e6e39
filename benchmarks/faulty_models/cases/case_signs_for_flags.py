"""Labels are -1 and 1, and a sigmoid under binary_crossentropy answers 0 to 1."""

import numpy as np

ID = "signs_for_flags"
SOURCE = "gradstab"
KIND = "artificial"
FAULT = __doc__
CAUSES = ["label-range"]
ALTERNATIVES = ["output-activation", "loss-mismatch", "label-encoding"]
LAYER = "out"
METRIC = "accuracy"
BUDGET = {"epochs": 15, "batch_size": 32}


def data(seed, faulty=True):
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(1600, 8)).astype("float32")
    y = ((x[:, 0] * x[:, 1] + x[:, 2]) > 0).astype("float32")
    if faulty:
        y = 2 * y - 1
    return x[:1000], y[:1000], x[1000:], y[1000:]


def build(faulty):
    import keras

    K = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8,)),
            K.Dense(32, activation="relu", name="hidden_0"),
            K.Dense(1, activation="sigmoid", name="out"),
        ]
    )
    model.compile(keras.optimizers.Adam(3e-3), "binary_crossentropy", metrics=["accuracy"])
    return model


def score(model, x_val, y_val):
    p = np.nan_to_num(model.predict(x_val, verbose=0))[:, 0]
    return float(np.mean((p > 0.5) == (y_val > 0.5)))
