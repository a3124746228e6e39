"""Classes counted from 1 to 10 for ten outputs, which are 0 to 9."""

import numpy as np

ID = "labels_from_one"
SOURCE = "gradstab"
KIND = "artificial"
FAULT = __doc__
CAUSES = ["label-range"]
ALTERNATIVES = ["label-encoding"]
LAYER = None
METRIC = "accuracy"
BUDGET = {"epochs": 10, "batch_size": 32}
RAISES = True


def data(seed, faulty):
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    rows = np.random.default_rng(seed).permutation(len(x))
    x, y = (x[rows] / 16).astype("float32"), y[rows].astype("int32")
    y += faulty
    return x[:1200], y[:1200], x[1200:], y[1200:]


def build(faulty):
    import keras

    K = keras.layers

    model = keras.Sequential(
        [
            keras.Input((64,)),
            K.Dense(64, activation="relu", name="hidden_0"),
            K.Dense(64, activation="relu", name="hidden_1"),
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
