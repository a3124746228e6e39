"""A GRU that returns every position under a head for one answer."""

import numpy as np

ID = "every_position_answers"
SOURCE = "gradstab"
KIND = "artificial"
FAULT = __doc__
CAUSES = ["missing-layer"]
ALTERNATIVES = ["wrong-shape", "loss-mismatch"]
LAYER = "gru"
METRIC = "accuracy"
BUDGET = {"epochs": 8, "batch_size": 32}


def data(seed):
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(1400, 12, 3)).astype("float32")
    y = (x[:, :, 0].sum(1) > 0).astype("float32")
    return x[:1000], y[:1000], x[1000:], y[1000:]


def build(faulty):
    import keras

    K = keras.layers
    model = keras.Sequential(
        [
            keras.Input((12, 3)),
            K.GRU(16, return_sequences=faulty, name="gru"),
            K.Dense(1, activation="sigmoid", name="out"),
        ]
    )
    model.compile(keras.optimizers.Adam(1e-2), "binary_crossentropy", metrics=["accuracy"])
    return model


def score(model, x_val, y_val):
    p = np.nan_to_num(model.predict(x_val, verbose=0)).reshape(len(x_val), -1).mean(1)
    return float(np.mean((p > 0.5) == (y_val > 0.5)))
