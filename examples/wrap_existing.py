"""Three lines that let an existing Keras script survive bad data.

Below is a script as there are many, plain Keras and scikit-learn. In its training data one image is
broken: its pixels are NaN. As it was, the first batch that holds it makes every weight NaN, and no
later batch mends that. With the three lines marked below, that one batch of each epoch is skipped,
whole, and the model learns.

Do not go by the loss that `fit` shows: it is a mean over the epoch, the skipped batch included, and
so reads NaN here either way. Elsewhere it may look finite over dead weights, since relu on some
devices turns NaN into 0.

    python examples/wrap_existing.py            # with the three lines
    python examples/wrap_existing.py --plain    # without: dies, and exits with 1
"""

import argparse
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import gradstab  # line 1 of 3


def train(plain, epochs):
    x, y = load_digits(return_X_y=True)
    x = x.reshape(-1, 8, 8, 1).astype("float32") / 16
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.2, random_state=0)
    x_train[123] = np.nan

    model = keras.Sequential(
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
    optimizer = keras.optimizers.Adam(1e-3)
    callbacks = []
    if not plain:
        optimizer = gradstab.stabilize(optimizer)  # line 2 of 3
        callbacks.append(gradstab.callbacks.DivergenceGuard())  # line 3 of 3

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    model.fit(x_train, y_train, epochs=epochs, callbacks=callbacks, verbose=2)
    _, accuracy = model.evaluate(x_test, y_test, verbose=0)

    broken = [v.path for v in model.trainable_variables if not np.isfinite(v.numpy()).all()]
    if not plain:
        reading = optimizer.telemetry.read()
        print(f"{reading.total_skipped} of {reading.cursor} steps skipped")
    return accuracy, broken


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plain", action="store_true", help="without the three lines")
    parser.add_argument("--quick", action="store_true", help="two epochs in place of ten")
    arguments = parser.parse_args()

    keras.utils.set_random_seed(0)
    accuracy, broken = train(arguments.plain, epochs=2 if arguments.quick else 10)
    print(f"test accuracy {accuracy:.3f}")
    if broken:
        print(f"these weights are NaN: {', '.join(broken)}", file=sys.stderr)
    return 1 if broken or accuracy < 0.5 else 0


if __name__ == "__main__":
    sys.exit(main())
