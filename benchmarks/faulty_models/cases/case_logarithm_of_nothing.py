"""A Lambda takes the logarithm of pixels, of which most are 0."""

import numpy as np

ID = "logarithm_of_nothing"
SOURCE = "gradstab"
KIND = "artificial"
FAULT = __doc__
CAUSES = ["nonfinite-forward"]
ALTERNATIVES = ["nonfinite-gradients", "nonfinite-data"]
LAYER = "logarithm"
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
    least = 0.0 if faulty else 1e-2
    model = keras.Sequential(
        [
            keras.Input((64,)),
            K.Lambda(lambda x: keras.ops.log(x + least), output_shape=(64,), name="logarithm"),
            K.Dense(64, activation="relu", name="hidden_0"),
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
