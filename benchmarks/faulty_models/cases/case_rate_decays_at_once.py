"""A schedule in epochs where it counts steps: the rate is gone after the first few."""

import numpy as np

ID = "rate_decays_at_once"
SOURCE = "gradstab"
KIND = "artificial"
FAULT = __doc__
CAUSES = ["learning-rate-too-low"]
ALTERNATIVES = ["too-few-epochs", "optimizer"]
LAYER = None
METRIC = "accuracy"
BUDGET = {"epochs": 15, "batch_size": 32}


def data(seed):
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    rows = np.random.default_rng(seed).permutation(len(x))
    x, y = (x[rows] / 16).astype("float32"), y[rows].astype("int32")
    return x[:1200], y[:1200], x[1200:], y[1200:]


def build(faulty):
    import keras

    K = keras.layers
    steps = 4 if faulty else 4 * 38
    rate = keras.optimizers.schedules.ExponentialDecay(0.1, steps, 0.5)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            K.Dense(64, activation="relu", name="hidden_0"),
            K.Dense(10, activation="softmax", name="out"),
        ]
    )
    model.compile(
        keras.optimizers.SGD(rate), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    return model


def score(model, x_val, y_val):
    p = np.nan_to_num(model.predict(x_val, verbose=0))
    return float(np.mean(p.argmax(-1) == y_val))
