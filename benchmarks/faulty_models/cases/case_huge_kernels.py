"""Kernels N(0, 3²) under tanh: every unit sits at -1 or 1."""

import numpy as np

ID = "huge_kernels"
SOURCE = "gradstab"
KIND = "artificial"
FAULT = __doc__
CAUSES = ["kernels-too-large"]
ALTERNATIVES = ["saturated-units", "vanishing-gradients", "exploding-gradients"]
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

    def kernel():
        return keras.initializers.RandomNormal(stddev=3.0) if faulty else "glorot_uniform"

    model = keras.Sequential(
        [
            keras.Input((64,)),
            K.Dense(64, activation="tanh", kernel_initializer=kernel(), name="hidden_0"),
            K.Dense(64, activation="tanh", kernel_initializer=kernel(), name="hidden_1"),
            K.Dense(64, activation="tanh", kernel_initializer=kernel(), name="hidden_2"),
            K.Dense(10, activation="softmax", name="out"),
        ]
    )
    model.compile(
        keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    return model


def score(model, x_val, y_val):
    p = np.nan_to_num(model.predict(x_val, verbose=0))
    return float(np.mean(p.argmax(-1) == y_val))
