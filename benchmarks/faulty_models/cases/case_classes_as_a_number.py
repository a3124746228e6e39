"""Ten classes as one number under a squared error."""

import numpy as np

ID = "classes_as_a_number"
SOURCE = "gradstab"
KIND = "artificial"
FAULT = __doc__
CAUSES = ["loss-mismatch"]
ALTERNATIVES = ["output-activation", "wrong-shape", "label-encoding", "metric-mismatch"]
LAYER = "out"
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
    head = K.Dense(1, name="out") if faulty else K.Dense(10, activation="softmax", name="out")
    model = keras.Sequential(
        [keras.Input((64,)), K.Dense(64, activation="relu", name="hidden_0"), head]
    )
    model.compile(
        keras.optimizers.Adam(1e-3),
        "mean_squared_error" if faulty else "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def score(model, x_val, y_val):
    p = np.nan_to_num(model.predict(x_val, verbose=0))
    answers = p.argmax(-1) if p.shape[-1] > 1 else np.round(p[:, 0])
    return float(np.mean(answers == y_val))
