"""A training loop of your own with gradstab's optimizer.

What `fit` would do for you comes down to three calls:

- `optimizer.apply(gradients, variables)` in the compiled step, as with any Keras optimizer. What it
  skips or clips happens on the device; nothing comes to the host.
- `optimizer.telemetry.read(since=cursor)` whenever you want to know what happened: every step since
  the last look, in one transfer.
- `optimizer.raise_if_diverged()` once per epoch: an exception that names the variable and the step,
  if more steps in a row were skipped than you allow.

So that there is something to see, one image of the training data is broken: all its pixels are NaN.
The one batch of every epoch that holds it is skipped; weights and moments stay as they were.
"""

import argparse
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import gradstab


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="three epochs")
    arguments = parser.parse_args()
    epochs = 3 if arguments.quick else arguments.epochs

    keras.utils.set_random_seed(0)
    digits = gradstab.data.load("digits", seed=0)
    images, labels = digits.arrays("train")
    images[7] = np.nan
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(2000).batch(32)

    model = gradstab.models.cnn_classifier((8, 8, 1), 10, rescale=1 / 16, seed=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = gradstab.stabilize("adam", learning_rate=1e-3, max_consecutive=10)
    optimizer.bind(model)  # tells the transforms which layer a variable belongs to

    @tf.function
    def train_step(images, labels):
        with tf.GradientTape() as tape:
            value = optimizer.scale_loss(loss(labels, model(images, training=True)))
        gradients = tape.gradient(value, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)

    cursor, skipped = None, 0
    for epoch in range(1, epochs + 1):
        for batch in batches:
            train_step(*batch)

        optimizer.raise_if_diverged()
        reading = optimizer.telemetry.read(since=cursor)
        cursor = reading.cursor
        good = ~reading.skipped
        skipped += reading.skipped.sum()
        print(
            f"epoch {epoch}: loss {reading.loss[good].mean():.3f}, "
            f"gradient norm {reading.grad_norm[good].mean():.2f} "
            f"(largest {reading.grad_norm[good].max():.1f}), clipped {reading.clipped.sum()} "
            f"and skipped {reading.skipped.sum()} of {len(reading.steps)} steps"
        )
        for row in np.flatnonzero(reading.skipped):
            print(f"  step {reading.steps[row]}: NaN first seen in {reading.bad_variable[row]}")

    images, labels = digits.arrays("test")
    accuracy = np.mean(np.argmax(model(images), axis=1) == labels)
    print(f"test accuracy {accuracy:.3f}, {skipped} steps skipped in {epochs} epochs")
    return 0 if accuracy > 0.5 and skipped == epochs else 1


if __name__ == "__main__":
    sys.exit(main())
