"""All kernels begin at zero, so that all units of a layer stay the same."""

import numpy as np

ID = "zero_kernels"
SOURCE = "gradstab"
KIND = "artificial"
FAULT = __doc__
CAUSES = ["constant-initialization"]
ALTERNATIVES = ["kernels-too-small", "vanishing-signal", "dead-units", "vanishing-gradients"]
LAYER = "hidden_0"
METRIC = "accuracy"
BUDGET = {"epochs": 10, "batch_size": 32}


def data(seed):
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    rows = np.random.default_rng(seed).permutation(len(x))
    x, y = (x[rows] / 16).astype("float32"), y[rows].astype("int32")
    return x[:1200], y[:1200], x[1200:], y[1200:]


def build(faulty):
    import keras

    K = keras.layers
    kernel = "zeros" if faulty else "he_normal"
    model = keras.Sequential(
        [
            keras.Input((64,)),
            K.Dense(64, activation="relu", kernel_initializer=kernel, name="hidden_0"),
            K.Dense(64, activation="relu", kernel_initializer=kernel, name="hidden_1"),
            K.Dense(10, activation="softmax", kernel_initializer=kernel, name="out"),
        ]
    )
    model.compile(
        keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    return model


def score(model, x_val, y_val):
    p = np.nan_to_num(model.predict(x_val, verbose=0))
    return float(np.mean(p.argmax(-1) == y_val))
