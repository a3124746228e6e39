"""A convolutional base with random weights is frozen to one map, and only the head learns."""

import numpy as np

ID = "random_and_frozen"
SOURCE = "gradstab"
KIND = "artificial"
FAULT = __doc__
CAUSES = ["frozen-model"]
ALTERNATIVES = ["bottleneck", "vanishing-signal"]
LAYER = "conv_0"
METRIC = "accuracy"
BUDGET = {"epochs": 10, "batch_size": 32}


def data(seed):
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    rows = np.random.default_rng(seed).permutation(len(x))
    x, y = (x[rows] / 16).astype("float32").reshape(-1, 8, 8, 1), y[rows].astype("int32")
    return x[:1200], y[:1200], x[1200:], y[1200:]


def build(faulty):
    import keras

    K = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            K.Conv2D(4, 3, strides=2, activation="relu", trainable=not faulty, name="conv_0"),
            K.Conv2D(4, 3, activation="relu", trainable=not faulty, name="conv_1"),
            K.Flatten(),
            K.Dense(10, activation="softmax", name="out"),
        ]
    )
    model.compile(
        keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    return model


def score(model, x_val, y_val):
    p = np.nan_to_num(model.predict(x_val, verbose=0))
    return float(np.mean(p.argmax(-1) == y_val))
