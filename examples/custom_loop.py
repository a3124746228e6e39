"""
A training loop of your own
===========================

A loop of your own needs three calls:

- ``optimizer.apply(gradients, variables)`` in the compiled step, as with any Keras optimizer. Skips
  and limits happen on the device, without transfers to the host.
- ``optimizer.telemetry.read(since=cursor)`` at any time: it returns every step since the last
  reading, in one transfer.
- ``optimizer.raise_if_diverged()`` once per epoch: an exception that names the variable and the
  step, if more steps in a row were skipped than you allow.

So that there is something to see, one training image is broken: all its pixels are NaN.
"""

# %%
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

import gradstab

EPOCHS = 3 if "--quick" in sys.argv else 10

keras.utils.set_random_seed(0)
digits = gradstab.data.load("digits", seed=0)
images, labels = digits.arrays("train")
images[7] = np.nan
batches = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(2000).batch(32)
model = gradstab.models.cnn_classifier((8, 8, 1), 10, rescale=1 / 16, seed=0)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

# %%
# The step
# --------
# ``bind`` shows the optimizer the model: which layer a variable belongs to, and the BatchNorm
# statistics that a skipped step puts back. ``scale_loss`` shows it the loss.

optimizer = gradstab.stabilize("adam", learning_rate=1e-3, max_consecutive=10)
optimizer.bind(model)


@tf.function
def train_step(images, labels):
    with tf.GradientTape() as tape:
        value = optimizer.scale_loss(loss(labels, model(images, training=True)))
    gradients = tape.gradient(value, model.trainable_variables)
    optimizer.apply(gradients, model.trainable_variables)


# %%
# The loop
# --------
# The one batch of every epoch that holds the broken image is skipped; weights and moments stay as
# they were, byte for byte.

cursor, norms, skipped = None, [], []
for epoch in range(1, EPOCHS + 1):
    for batch in batches:
        train_step(*batch)

    optimizer.raise_if_diverged()
    reading = optimizer.telemetry.read(since=cursor)
    cursor = reading.cursor
    good = ~reading.skipped
    print(
        f"epoch {epoch}: loss {reading.loss[good].mean():.3f}, "
        f"gradient norm {reading.grad_norm[good].mean():.2f}, "
        f"skipped {reading.skipped.sum()} of {len(reading.steps)} steps"
    )
    for row in np.flatnonzero(reading.skipped):
        print(f"  step {reading.steps[row]}: NaN first seen in {reading.bad_variable[row]}")
    norms.extend(reading.grad_norm)
    skipped.extend(reading.skipped)

# %%
# Every step was measured, and the skipped ones are where the line is broken, at the red marks.

plt.semilogy(np.where(skipped, np.nan, norms), linewidth=1)
for step in np.flatnonzero(skipped):
    plt.axvline(step, color="tab:red", linestyle=":")
plt.xlabel("step")
plt.ylabel("norm of the gradient")
plt.title(f"{sum(skipped)} skipped steps in {EPOCHS} epochs")
plt.show()

# %%

images, labels = digits.arrays("test")
accuracy = np.mean(np.argmax(model(images), axis=1) == labels)
print(f"test accuracy {accuracy:.3f}")

if accuracy < 0.5 or sum(skipped) != EPOCHS:
    raise RuntimeError("a skipped step in each epoch was expected, and a model that learns")
