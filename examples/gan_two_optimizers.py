"""
A GAN with two optimizers
=========================

A generator draws digits, a discriminator distinguishes them from real ones, and each has its own
optimizer. Both are wrapped, and one monitor watches both: columns and record carry their names. One
batch of "real" images has pixels 0..255 instead of 0..1, as from a file of another format.
"""

# %%
import os
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

import gradstab

EPOCHS = 30 if "--quick" in sys.argv else 150
NOISE = 16
run_dir = tempfile.mkdtemp(prefix="gradstab-")

keras.utils.set_random_seed(0)
images = gradstab.data.load("digits", seed=0).arrays("train")[0].reshape(-1, 64) / 16
batches = images[: 32 * (len(images) // 32)].reshape(-1, 32, 64)
batches = np.tile(batches, (EPOCHS, 1, 1))
BAD = len(batches) // 2
batches[BAD] *= 255.0

# %%
# The model
# ---------
# A ``train_step`` as in Keras' guides. Nothing in it knows of gradstab but ``scale_loss``, which
# shows each optimizer its loss.


class GAN(keras.Model):
    def __init__(self):
        super().__init__()
        dense, relu = keras.layers.Dense, lambda: keras.layers.LeakyReLU(0.2)
        self.generator = keras.Sequential(
            [keras.Input((NOISE,)), dense(128), relu(), dense(128), relu(), dense(64, "sigmoid")],
            name="generator",
        )
        self.discriminator = keras.Sequential(
            [keras.Input((64,)), dense(128), relu(), dense(128), relu(), dense(1)],
            name="discriminator",
        )

    def compile(self, generator_optimizer, discriminator_optimizer):
        super().compile(generator_optimizer, keras.losses.BinaryCrossentropy(from_logits=True))
        self.generator_optimizer = generator_optimizer
        self.discriminator_optimizer = discriminator_optimizer

    def call(self, noise):
        return self.generator(noise)

    def train_step(self, real):
        noise = keras.random.normal((2, tf.shape(real)[0], NOISE))
        with tf.GradientTape() as tape:
            judged = self.discriminator(tf.concat([real, self.generator(noise[0])], axis=0))
            is_real = tf.concat([0.9 * tf.ones_like(real[:, :1]), tf.zeros_like(real[:, :1])], 0)
            d_loss = self.loss(is_real, judged)
            scaled = self.discriminator_optimizer.scale_loss(d_loss)
        variables = self.discriminator.trainable_variables
        self.discriminator_optimizer.apply(tape.gradient(scaled, variables), variables)

        with tf.GradientTape() as tape:
            judged = self.discriminator(self.generator(noise[1]))
            g_loss = self.loss(tf.ones_like(judged), judged)
            scaled = self.generator_optimizer.scale_loss(g_loss)
        variables = self.generator.trainable_variables
        self.generator_optimizer.apply(tape.gradient(scaled, variables), variables)
        return {"d_loss": d_loss, "g_loss": g_loss}


def adam():
    return gradstab.stabilize(keras.optimizers.Adam(5e-4, beta_1=0.5))


model = GAN()
model.compile(adam(), adam())

# %%
# Training
# --------
# ``GradientMonitor`` finds both optimizers, and would find them unwrapped as well.

losses = {"d_loss": [], "g_loss": []}
keep = keras.callbacks.LambdaCallback(
    on_train_batch_end=lambda batch, logs: [losses[name].append(logs[name]) for name in losses]
)
monitor = gradstab.callbacks.GradientMonitor(run_dir, every_n_steps=20)
data = tf.data.Dataset.from_tensor_slices(batches.astype("float32"))
history = model.fit(data, callbacks=[monitor, keep], shuffle=False, verbose=0)

print("columns of the history:", *history.history)
for name in ("generator_optimizer", "discriminator_optimizer"):
    reading = getattr(model, name).telemetry.read()
    limited = reading.steps[reading.limited]
    print(f"{name}: limited {len(limited)} of {reading.cursor} steps:", *limited[:10])

# %%
# The bad batch reached the discriminator alone, and its step was shortened by the square of how far
# it was out of line. The generator went on as if nothing had been.

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
for name, values in losses.items():
    left.plot(values, linewidth=0.7, label=name)
left.axvline(BAD, color="tab:red", linestyle=":", label="bad batch")
left.set(xlabel="step", ylabel="loss", yscale="log")
left.legend()
drawn = keras.ops.convert_to_numpy(model.generator(np.random.default_rng(0).normal(size=(36, 16))))
right.imshow(drawn.reshape(6, 6, 8, 8).swapaxes(1, 2).reshape(48, 48), cmap="gray_r")
right.set_axis_off()
right.set_title(f"drawn after {EPOCHS} epochs")
plt.show()

# Alive: the drawn digits differ from each other, and their mean looks like that of real ones.
spread = drawn.std(axis=0).mean()
likeness = np.corrcoef(drawn.mean(axis=0), images.mean(axis=0))[0, 1]
print(f"spread of pixels {spread:.2f}, of real ones {images.std(axis=0).mean():.2f}")
print(f"likeness of the means {likeness:.2f}")
if spread < 0.05 or likeness < 0.7:
    raise RuntimeError("the generator has collapsed")
