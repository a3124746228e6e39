"""
Three lines for an existing script
==================================

This is a plain Keras script on scikit-learn's digits. One training image is broken: its pixels are
NaN. The first batch with this image ruins the weights for good. With three more lines, marked
below, that batch is skipped in each epoch.
"""

# %%
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import gradstab  # line 1 of 3

EPOCHS = 3 if "--quick" in sys.argv else 10

x, y = load_digits(return_X_y=True)
x = x.reshape(-1, 8, 8, 1).astype("float32") / 16
x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.2, random_state=0)
x_train[123] = np.nan  # the broken image


def build_model():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(64, 3, padding="same", activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(10),
        ]
    )


def train(optimizer, callbacks):
    keras.utils.set_random_seed(0)
    model = build_model()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    model.fit(x_train, y_train, epochs=EPOCHS, callbacks=callbacks, verbose=2)
    accuracy = model.evaluate(x_test, y_test, verbose=0, return_dict=True)["accuracy"]
    broken = [each.path for each in model.weights if not np.isfinite(each.numpy()).all()]
    print(f"test accuracy {accuracy:.3f}; not finite: {', '.join(broken) or 'nothing'}")
    return accuracy


# %%
# As it was
# ---------
# The weights are lost in the first epoch, and Keras goes on to the last one. The loss need not show
# it: relu on some processors turns NaN into 0, so that it looks finite over dead weights.

plain = train(keras.optimizers.Adam(1e-3), [])

# %%
# With the three lines
# --------------------
# The broken batch comes in every epoch, and in every epoch it is skipped.

optimizer = gradstab.stabilize(keras.optimizers.Adam(1e-3))  # line 2 of 3
guard = gradstab.callbacks.DivergenceGuard()  # line 3 of 3
protected = train(optimizer, [guard])

# %%
# What happened, step by step, stands in the optimizer's telemetry: which step was skipped, and
# which variable was the first whose gradient was not finite.

reading = optimizer.telemetry.read()
for row in np.flatnonzero(reading.skipped):
    print(f"step {reading.steps[row]}: skipped, NaN first seen in {reading.bad_variable[row]}")

if not plain < 0.3 < 0.7 < protected or reading.total_skipped != EPOCHS:
    raise RuntimeError("the three lines did not do what this page says")
