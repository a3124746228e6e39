"""Features from 0.01 to 1,680, as measured, under SGD."""

import numpy as np

ID = "raw_measurements"
SOURCE = "gradstab"
KIND = "artificial"
FAULT = __doc__
CAUSES = ["unscaled-input"]
ALTERNATIVES = ["learning-rate-too-high", "exploding-gradients", "dead-units"]
LAYER = None
METRIC = "accuracy"
BUDGET = {"epochs": 20, "batch_size": 16}


def data(seed, faulty):
    from sklearn.datasets import load_wine

    x, y = load_wine(return_X_y=True)
    rows = np.random.default_rng(seed).permutation(len(x))
    if not faulty:
        x = (x - x.mean(axis=0)) / x.std(axis=0)
    x, y = x[rows].astype("float32"), y[rows].astype("int32")
    return x[:120], y[:120], x[120:], y[120:]


def build(faulty):
    import keras

    K = keras.layers

    model = keras.Sequential(
        [
            keras.Input((13,)),
            K.Dense(32, activation="relu", name="hidden"),
            K.Dense(3, activation="softmax", name="out"),
        ]
    )
    model.compile(
        keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    return model


def score(model, x_val, y_val):
    p = np.nan_to_num(model.predict(x_val, verbose=0))
    return float(np.mean(p.argmax(-1) == y_val))
