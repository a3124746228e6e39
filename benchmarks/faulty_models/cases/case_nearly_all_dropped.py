"""Nine of ten units of two narrow layers are dropped."""

import numpy as np

ID = "nearly_all_dropped"
SOURCE = "gradstab"
KIND = "artificial"
FAULT = __doc__
CAUSES = ["over-regularized"]
ALTERNATIVES = ["bottleneck", "collapsed-output", "too-few-epochs"]
LAYER = "drop_0"
METRIC = "accuracy"
BUDGET = {"epochs": 12, "batch_size": 32}


def data(seed):
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    rows = np.random.default_rng(seed).permutation(len(x))
    x, y = (x[rows] / 16).astype("float32"), y[rows].astype("int32")
    return x[:1200], y[:1200], x[1200:], y[1200:]


def build(faulty):
    import keras

    K = keras.layers
    rate = 0.9 if faulty else 0.1
    model = keras.Sequential(
        [
            keras.Input((64,)),
            K.Dense(32, activation="relu", name="hidden_0"),
            K.Dropout(rate, name="drop_0"),
            K.Dense(32, activation="relu", name="hidden_1"),
            K.Dropout(rate, name="drop_1"),
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
