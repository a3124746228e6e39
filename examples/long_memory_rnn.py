"""
A recurrent net with a long memory
==================================

Each sequence begins with one of four symbols, followed by many irrelevant ones. At the end the net
has to name the first. The gradient has to pass all the way back, multiplied by the recurrent
weights at every step: it vanishes with small weights and explodes with large ones. Initial weights
decide how far it reaches before training; a penalty keeps it alive during training.
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

QUICK = "--quick" in sys.argv
LENGTH, UNITS, STEPS, BATCH = (40 if QUICK else 80), 32, (500 if QUICK else 2000), 32


def sequences(count, seed):
    draw = np.random.default_rng(seed)
    symbols = draw.integers(4, 8, (count, LENGTH))  # the noise
    symbols[:, 0] = draw.integers(0, 4, count)  # what is asked for
    return np.eye(8, dtype="float32")[symbols], symbols[:, 0]


def build_model(recurrent_initializer):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((LENGTH, 8)),
            keras.layers.SimpleRNN(UNITS, recurrent_initializer=recurrent_initializer),
            keras.layers.Dense(4),
        ]
    )


loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
starts = {
    "small, N(0, 0.1²)": keras.initializers.RandomNormal(stddev=0.1, seed=0),
    "large, N(0, 0.4²)": keras.initializers.RandomNormal(stddev=0.4, seed=0),
    "orthogonal": keras.initializers.Orthogonal(seed=0),
}

# %%
# How far back does the gradient reach?
# -------------------------------------
# Look before you train: the gradient of the loss with respect to the input at each position.


def reach(model):
    x, y = sequences(256, seed=1)
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = loss(y, model(x, training=True))
    return np.linalg.norm(tape.gradient(value, x), axis=(0, 2))


for name, start in starts.items():
    plt.semilogy(reach(build_model(start)), label=name)
plt.xlabel("position in the sequence")
plt.ylabel("norm of the gradient")
plt.title("Before training")
plt.legend()
plt.show()

# %%
# Training
# --------
# ``training.train`` runs many steps per call on the device, and takes penalties.
# ``RecurrentGradientNorm`` (Pascanu, Mikolov and Bengio, 2013) asks of each step back in time that
# it neither shortens nor lengthens the gradient.

tested = sequences(1000, seed=2)


def train(recurrent_initializer, penalties=()):
    model = build_model(recurrent_initializer)
    optimizer = gradstab.optimizers.clip_by_global_norm(keras.optimizers.Adam(3e-3), max_norm=1.0)
    model.compile(optimizer, loss, metrics=["accuracy"])
    gradstab.training.train(
        model,
        *sequences(BATCH * STEPS, seed=3),
        epochs=1,
        batch_size=BATCH,
        penalties=penalties,
        jit_compile=False,
        seed=0,
        verbose=0,
    )
    return model, model.evaluate(*tested, verbose=0, return_dict=True)["accuracy"]


found = {name: train(start) for name, start in starts.items()}
penalty = gradstab.training.RecurrentGradientNorm(0.5)
found["small, with the penalty"] = train(starts["small, N(0, 0.1²)"], [penalty])
for name, (_, accuracy) in found.items():
    print(f"{name:24} test accuracy {accuracy:.3f}   (guessing: 0.250)")

# %%
# After training
# --------------

for name, (model, accuracy) in found.items():
    plt.semilogy(reach(model), label=f"{name}: {accuracy:.2f}")
plt.xlabel("position in the sequence")
plt.ylabel("norm of the gradient")
plt.title("After training")
plt.legend(title="start: test accuracy")
plt.show()
