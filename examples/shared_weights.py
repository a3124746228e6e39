"""Weights with more than one use: a tied autoencoder, and one block at every depth.

Part one compresses digits to 16 numbers and back, by a Dense layer and the same kernel transposed
(`TiedDense`), beside an autoencoder with a kernel of its own for the way back. It has half the
weights, and one kernel still serves both ways after saving and loading.

Part two classifies digits by one residual block that is called eight times (`SharedBlock`). The
gradient that the optimizer gets is the sum over its uses; `SharedBlockMonitor` shows each of them.
With a block that contracts, uses far from the loss have next to no say; with the residual
connection all have. A loop of your own reads the same numbers from the layer.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import gradstab
from gradstab.layers import ScaledResidual, SharedBlock, TiedDense

NUM_USES = 8


def autoencoder(tied):
    keras.utils.set_random_seed(0)
    code = keras.layers.Dense(16, "tanh", name="code")
    inputs = keras.Input((64,))
    hidden = code(inputs)
    back = TiedDense(code, name="back") if tied else keras.layers.Dense(64, name="back")
    return keras.Model(inputs, back(hidden))


def compress(digits, epochs):
    """Train both autoencoders; return their test errors, and whether a loaded one is still tied."""
    train, test = (digits.arrays(split)[0].reshape(-1, 64) / 16 for split in ("train", "test"))
    errors = []
    for tied in (False, True):
        model = autoencoder(tied)
        model.compile(gradstab.stabilize("adam", learning_rate=3e-3), "mse")
        model.fit(train, train, batch_size=64, epochs=epochs, verbose=0)
        errors.append(float(np.mean((model.predict(test, verbose=0) - test) ** 2)))
        kind = "one kernel, both ways" if tied else "two kernels"
        print(f"{kind}: {model.count_params()} weights, test error {errors[-1]:.4f}")
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "tied.keras")
        loaded = keras.models.load_model(Path(folder) / "tied.keras")
    shared = loaded.get_layer("back").tied_to is loaded.get_layer("code")
    print(f"mean square of test pixels {np.mean(test**2):.4f}; loaded as shared: {shared}\n")
    return errors, shared, float(np.var(test))


def deep(residual):
    keras.utils.set_random_seed(0)
    small = keras.initializers.RandomNormal(stddev=0.05)
    layers = [keras.layers.Dense(32, "tanh", kernel_initializer=small)]
    block = keras.Sequential(layers)
    if residual:
        block = ScaledResidual(layers, alpha_initializer="ones")
    return keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(32, "tanh"),
            SharedBlock(block, NUM_USES, name="shared"),
            keras.layers.Dense(10),
        ]
    )


def classify(digits, epochs):
    """Train both deep nets; return the share of the first use in the gradients of each."""
    (x, y), (test, labels) = (digits.arrays(split) for split in ("train", "test"))
    x, test = (images.reshape(-1, 64) / 16 for images in (x, test))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    shares = []
    for residual in (False, True):
        model = deep(residual)
        model.compile(gradstab.stabilize("adam", learning_rate=1e-3), loss, metrics=["accuracy"])
        monitor = gradstab.callbacks.SharedBlockMonitor(every_n_steps=20)
        model.fit(x, y, batch_size=32, epochs=epochs, verbose=0, callbacks=[monitor])
        accuracy = model.evaluate(test, labels, verbose=0, return_dict=True)["accuracy"]
        print(f"{'residual' if residual else 'plain'} block, test accuracy {accuracy:.3f}")
        for step, found in (monitor.history[0], monitor.history[-1]):
            norms = " ".join(f"{value:8.1e}" for value in found["shared"].use_norm)
            print(f"  step {step:4d}, gradient of use 1 to {NUM_USES}: {norms}")
        first = monitor.history[0][1]["shared"].use_norm
        shares.append(float(first[0] / first[-1]))

    # The same in a loop of your own: train with `training=True`, then ask the layer.
    @tf.function
    def step(images, labels):
        with tf.GradientTape() as tape:
            value = loss(labels, model(images, training=True))
        model.optimizer.apply(
            tape.gradient(value, model.trainable_variables), model.trainable_variables
        )

    step(x[:32], y[:32])
    found = model.get_layer("shared").use_gradients()
    print(
        f"one more step by hand: norms add up to {found.use_norm.sum():.3f}, their sum's norm is "
        f"{np.linalg.norm(found.total):.3f}; agreement {found.agreement:.2f}"
    )
    return shares, accuracy


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="five epochs")
    arguments = parser.parse_args()
    epochs = 5 if arguments.quick else arguments.epochs
    digits = gradstab.data.load("digits", seed=0)

    errors, shared, spread = compress(digits, epochs)
    (plain, residual), accuracy = classify(digits, epochs)
    print(
        f"use 1 over use {NUM_USES} in the first step: plain {plain:.0e}, residual {residual:.2f}"
    )
    learned = max(errors) < 0.5 * spread and accuracy > 0.8
    return 0 if shared and learned and plain < 1e-2 < 0.1 < residual else 1


if __name__ == "__main__":
    sys.exit(main())
