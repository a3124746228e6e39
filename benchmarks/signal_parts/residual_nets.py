"""100-layer residual nets without normalization: ReZero and Fixup beside what they replace.

50 blocks of two 3x3 convolutions with 16 channels at 7x7, then a linear layer on the mean over all
places; Fashion-MNIST, 500 steps of 32 images, Adam. The healthy twin has the same layers with batch
normalization; the plain one has neither normalization nor a scalar. Each takes the best of the same
three rates by validation accuracy, measured with the first seed, and is scored on test images with
every seed.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import keras
import numpy as np

from gradstab import data, layers

NAME = "residual nets without normalization"

METHODS = {
    "batchnorm": "batch normalization (the healthy twin)",
    "rezero": "ReZero, no normalization",
    "fixup": "Fixup, no normalization",
    "plain": "neither",
}
RATES = (3e-4, 1e-3, 3e-3)
CHANCE = 0.1
FLOOR = 0.8
NUM_SEEDS = 3
BATCH = 32
SECONDS = {"batchnorm": 320, "rezero": 210, "fixup": 240, "plain": 210}


def wanted(quick: bool) -> dict[str, float]:
    """Names of the results, with the seconds that each takes on two cores."""
    return {"all": 8.0} if quick else {name: float(SECONDS[name]) for name in METHODS}


def measure(name: str, seeds: int, quick: bool) -> dict[str, Any]:
    """Train the nets of one method, or of all for a quick look."""
    blocks, steps, rates, number = (1, 20, RATES[2:], 1) if quick else (50, 500, RATES, NUM_SEEDS)
    names = list(METHODS) if name == "all" else [name]
    splits = _data(quick)
    words = np.random.SeedSequence(seeds).generate_state(number)
    own_seeds = [int(word) & 0x7FFFFFFF for word in words]
    return {each: _measure(each, splits, blocks, steps, rates, own_seeds) for each in names}


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the accuracies, and whether the floor holds."""
    found = {name: one for result in results.values() for name, one in result.items()}
    healthy = found.get("batchnorm")
    lines = [
        "| residual net | layers | rate | test accuracy, median (each seed) | part of the healthy "
        f"twin's above chance | at least {FLOOR:.2f} |",
        "|---|---|---|---|---|---|",
    ]
    for name, words in METHODS.items():
        if name not in found:
            continue
        one = found[name]
        accuracies = one["test"]
        each = " ".join(f"{value:.3f}" for value in accuracies)
        part, holds = "", ""
        if healthy is not None and name != "batchnorm" and one["steps"] >= 100:
            above = np.median(healthy["test"]) - CHANCE
            share = (np.median(accuracies) - CHANCE) / above if above > 0 else float("nan")
            part = f"{share:.2f}"
            holds = ("holds" if share >= FLOOR else "FAILS") if name != "plain" else "no floor"
        lines.append(
            f"| {words} | {one['layers']} | {one['rate']:g} | {np.median(accuracies):.3f} ({each}) "
            f"| {part} | {holds} |"
        )
    lines.append("")
    if any(one["steps"] < 100 for one in found.values()):
        lines.append("A quick look at nets of two layers on few images: the numbers mean nothing.")
    for name, words in METHODS.items():
        if name in found:
            rates = ", ".join(f"{rate}: {v:.3f}" for rate, v in found[name]["validation"].items())
            lines.append(f"- {words}: validation accuracy by rate {rates}")
    return "\n".join(lines)


def _measure(name, splits, blocks, steps, rates, seeds):
    run = _Run(name, splits, blocks, steps)
    validation, weights = {}, {}
    for rate in rates:
        run.train(rate, seeds[0])
        weights[rate] = run.model.get_weights()
        validation[f"{rate:g}"] = run.accuracy("validation")
        _say(f"{name}: rate {rate:g}, validation {validation[f'{rate:g}']:.3f}")
    best = max(rates, key=lambda rate: validation[f"{rate:g}"])
    run.model.set_weights(weights[best])
    test = [run.accuracy("test")]
    for seed in seeds[1:]:
        run.train(best, seed)
        test.append(run.accuracy("test"))
        _say(f"{name}: seed {seed}, test {test[-1]:.3f}")
    return {
        "layers": 2 * blocks,
        "rate": best,
        "validation": validation,
        "test": test,
        "seeds": seeds,
        "steps": steps,
    }


class _Run:
    """One model that is traced once, which takes as long as a training, and trained anew often."""

    def __init__(self, name, splits, blocks, steps):
        self.splits, self.steps = splits, steps
        self.build = lambda seed: build(name, splits["train"][0].shape[1:], blocks, seed)
        self.model = self.build(0)
        self.model.compile(
            keras.optimizers.Adam(),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            steps_per_execution=min(50, steps),
            jit_compile=False,
        )
        self.model.optimizer.build(self.model.trainable_variables)

    def train(self, rate, seed):
        start = time.perf_counter()
        self.model.set_weights(self.build(seed).get_weights())
        optimizer = self.model.optimizer
        for variable in optimizer.variables:
            variable.assign(keras.ops.zeros_like(variable))
        optimizer.learning_rate = rate
        images, labels = self.splits["train"]
        draw = np.random.default_rng(seed)
        epochs = [
            draw.permutation(len(images)) for _ in range(1 + BATCH * self.steps // len(images))
        ]
        order = np.concatenate(epochs)[: BATCH * self.steps]
        self.model.fit(images[order], labels[order], batch_size=BATCH, shuffle=False, verbose=0)
        _say(f"trained in {time.perf_counter() - start:.0f} s")

    def accuracy(self, split):
        images, labels = self.splits[split]
        logits = self.model.predict(images, batch_size=1000, verbose=0)
        return float(np.mean(np.argmax(logits, axis=1) == labels))


def build(name, shape, blocks, seed):
    """The residual net of one method."""
    keras.utils.set_random_seed(seed)
    conv = {"padding": "same", "kernel_initializer": "he_normal"}
    inputs = keras.Input(shape)
    x = keras.layers.Conv2D(16, 3, strides=2, activation="relu", **conv)(inputs)
    x = keras.layers.Conv2D(16, 3, strides=2, activation="relu", **conv)(x)
    for _ in range(blocks):
        branch = []
        for _ in range(2):
            if name == "batchnorm":
                branch.append(keras.layers.BatchNormalization())
            branch += [keras.layers.ReLU(), keras.layers.Conv2D(16, 3, **conv)]
        if name in ("rezero", "fixup"):
            x = layers.ScaledResidual(branch, method=name, num_branches=blocks)(x)
        else:
            x = keras.layers.add([x, keras.Sequential(branch)(x)])
    if name == "batchnorm":
        x = keras.layers.BatchNormalization()(x)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
    begin = "zeros" if name == "fixup" else "glorot_uniform"
    return keras.Model(inputs, keras.layers.Dense(10, kernel_initializer=begin)(x))


def _data(quick):
    found = data.load("digits" if quick else "fashion_mnist", seed=0)
    images, labels = found.arrays("train")
    mean, deviation = images.mean(), images.std()
    splits = {"train": (images, labels)}
    splits |= {split: found.arrays(split) for split in ("validation", "test")}
    return {name: ((x - mean) / deviation, y) for name, (x, y) in splits.items()}


def _say(words):
    print(words, file=sys.stderr, flush=True)
