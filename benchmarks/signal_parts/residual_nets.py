"""100-layer residual nets without normalization: ReZero and Fixup beside what they replace.

50 blocks of two 3x3 convolutions, 16 channels at 7x7, before a linear layer on the mean over all
places, on Fashion-MNIST. The healthy twin has the same layers with batch normalization; the plain
one has neither normalization nor a scalar. Each takes the best of the same three rates by
validation accuracy, measured with the first seed, and is scored on test images with every seed.
"""

import sys
import time

import keras
import numpy as np

from gradstab import data, layers

NAME = "residual_nets"

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
SECONDS = {"batchnorm": 220, "rezero": 140, "fixup": 150, "plain": 130}


def wanted(quick):
    """Names of the results, with the seconds that each takes on two cores."""
    return {"all": 8.0} if quick else {name: float(SECONDS[name]) for name in METHODS}


def measure(name, seeds, quick):
    """Train the nets of one method, or of all for a quick look."""
    blocks, steps, rates, number = (1, 20, RATES[2:], 1) if quick else (50, 500, RATES, NUM_SEEDS)
    names = list(METHODS) if name == "all" else [name]
    splits = _data(quick)
    words = np.random.SeedSequence(seeds).generate_state(number)
    own_seeds = [int(word) & 0x7FFFFFFF for word in words]
    return {each: _measure(each, splits, blocks, steps, rates, own_seeds) for each in names}


def table(results):
    """The accuracies as markdown, and whether the floor holds."""
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
        if healthy is not None and name != "batchnorm":
            above = np.median(healthy["test"]) - CHANCE
            share = (np.median(accuracies) - CHANCE) / above if above > 0 else float("nan")
            part = f"{share:.2f}"
            holds = ("yes" if share >= FLOOR else "no") if name != "plain" else "(no floor)"
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
    validation, models = {}, {}
    for rate in rates:
        models[rate] = _trained(name, splits["train"], blocks, steps, rate, seeds[0])
        validation[f"{rate:g}"] = _accuracy(models[rate], *splits["validation"])
        _say(f"{name}: rate {rate:g}, validation {validation[f'{rate:g}']:.3f}")
    best = max(rates, key=lambda rate: validation[f"{rate:g}"])
    test = [_accuracy(models[best], *splits["test"])]
    for seed in seeds[1:]:
        model = _trained(name, splits["train"], blocks, steps, best, seed)
        test.append(_accuracy(model, *splits["test"]))
        _say(f"{name}: seed {seed}, test {test[-1]:.3f}")
    return {
        "layers": 2 * blocks,
        "rate": best,
        "validation": validation,
        "test": test,
        "seeds": seeds,
        "steps": steps,
    }


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


def _trained(name, train, blocks, steps, rate, seed):
    images, labels = train
    model = build(name, images.shape[1:], blocks, seed)
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=min(50, steps),
        jit_compile=False,
    )
    draw = np.random.default_rng(seed)
    epochs = [draw.permutation(len(images)) for _ in range(1 + 64 * steps // len(images))]
    order = np.concatenate(epochs)[: 64 * steps]
    start = time.perf_counter()
    model.fit(images[order], labels[order], batch_size=64, shuffle=False, verbose=0)
    _say(f"{name}: trained in {time.perf_counter() - start:.0f} s")
    return model


def _data(quick):
    found = data.load("digits" if quick else "fashion_mnist", seed=0)
    images, labels = found.arrays("train")
    mean, deviation = images.mean(), images.std()
    splits = {"train": (images, labels)}
    splits |= {split: found.arrays(split) for split in ("validation", "test")}
    return {name: ((x - mean) / deviation, y) for name, (x, y) in splits.items()}


def _accuracy(model, images, labels):
    logits = model.predict(images, batch_size=1000, verbose=0)
    return float(np.mean(np.argmax(logits, axis=1) == labels))


def _say(words):
    print(words, file=sys.stderr, flush=True)
