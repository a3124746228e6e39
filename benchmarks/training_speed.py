"""Examples per second of `gradstab.training.train`, relative to the fastest form of `fit`.

    python benchmarks/training_speed.py [--quick] [--output FILE] [--models MLP ...] [--rounds N]

Three models, an MLP (64-128-64-10), the corrected CNN, and a CNN with two strided convolutions on
digits of 28×28, on scikit-learn's digits, batches of 32, Adam 1e-3. `fit` runs in every combination
of `steps_per_execution` in {1, 8, 32}, XLA off and on, and data given as NumPy arrays and as a
`tf.data` pipeline; `train` is compared with the fastest of these, once with the same plain Adam and
once with `gradstab.stabilize("adam")`. All run in one process, one whole epoch each in turn, every
contender in a single long call. The first epochs, which compile, are not counted; the time of
`train`'s probe is shown separately. A ratio is the median over rounds of the two epochs of the same
round, with a bootstrapped 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from harness.origin import machine
from harness.turns import Turnstile, ratio, take_turns
from sklearn.datasets import load_digits

import gradstab

FLOOR, AIM = 0.97, 1.1
DEFAULT_FLOOR = 1.15  # of the same loop with plain Adam
NUM_TRAINING = 1257
BATCH_SIZE = 32
MANY_EPOCHS = 100_000
WARM_UP_EPOCHS = 3
PACKAGES = ("gradstab", "keras", "tensorflow", "numpy", "scikit-learn", "python")


def mlp() -> keras.Model:
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )


def cnn() -> keras.Model:
    layers = keras.layers
    model = keras.Sequential([layers.Input((8, 8, 1))])
    for filters in (32, 64, 64, 256):
        model.add(layers.Conv2D(filters, 3, padding="same", activation="relu"))
        model.add(layers.MaxPooling2D(2, padding="same"))
    model.add(layers.Flatten())
    model.add(layers.Dense(128, activation="relu"))
    model.add(layers.Dense(10))
    return model


def strided_cnn() -> keras.Model:
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            layers.Conv2D(16, 3, strides=2, activation="relu"),
            layers.Conv2D(32, 3, strides=2, activation="relu"),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )


MODELS = {"MLP": mlp, "CNN": cnn, "strided CNN": strided_cnn}


def compiled(build: Callable[[], Any], optimizer: Any = None, **arguments: Any) -> Any:
    keras.utils.set_random_seed(0)
    model = build()
    model.compile(
        optimizer or keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **arguments,
    )
    return model


def contenders(
    build: Callable[[], Any], grid: list[tuple[int, bool, str]], x: Any, y: Any, found: dict
) -> dict[str, Callable[[Turnstile], Any]]:
    def fit(steps: int, xla: bool, data: str) -> Callable[[Turnstile], Any]:
        def run(turnstile: Turnstile) -> Any:
            model = compiled(build, steps_per_execution=steps, jit_compile=xla)
            if data == "arrays":
                inputs: dict[str, Any] = {"x": x, "y": y, "batch_size": BATCH_SIZE}
            else:
                pipeline = tf.data.Dataset.from_tensor_slices((x, y)).cache().shuffle(len(x))
                pipeline = pipeline.batch(BATCH_SIZE).prefetch(tf.data.AUTOTUNE)
                inputs = {"x": pipeline, "shuffle": False}
            return model.fit(**inputs, epochs=MANY_EPOCHS, callbacks=[turnstile], verbose=0)

        return run

    def train(name: str, optimizer: Callable[[], Any]) -> Callable[[Turnstile], Any]:
        def run(turnstile: Turnstile) -> Any:
            model = compiled(build, optimizer())
            history = gradstab.training.train(
                model, (x, y), epochs=MANY_EPOCHS, batch_size=BATCH_SIZE, seed=0,
                callbacks=[turnstile], verbose=0,
            )  # fmt: skip
            found[name] = history.params["loop"]

        return run

    runs = {
        f"fit({data}, steps_per_execution={steps}, jit_compile={xla})": fit(steps, xla, data)
        for steps, xla, data in grid
    }
    runs["train"] = train("train", lambda: keras.optimizers.Adam(1e-3))
    runs["train + stabilize"] = train(
        "train + stabilize", lambda: gradstab.stabilize(keras.optimizers.Adam(1e-3))
    )
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few rounds of a smaller grid")
    parser.add_argument("--output", type=Path, help="write the results as JSON to this file")
    parser.add_argument("--models", nargs="+", choices=MODELS, help="default: all")
    parser.add_argument("--rounds", type=int, help="rounds to measure (default: 30)")
    arguments = parser.parse_args()

    generator = np.random.default_rng(0)
    images, labels = load_digits(return_X_y=True)
    order = generator.permutation(len(images))[:NUM_TRAINING]
    x = (images[order] / 16).astype("float32").reshape(-1, 8, 8, 1)
    y = labels[order].astype("int32")
    if arguments.quick:
        grid = [(32, False, "arrays")]
    else:
        grid = [
            (steps, xla, data)
            for data in ("arrays", "tf.data")
            for steps in (1, 8, 32)
            for xla in (False, True)
        ]
    num_rounds = arguments.rounds or (3 if arguments.quick else 30)
    results: dict[str, Any] = {**machine(PACKAGES), "rounds": num_rounds, "models": {}}
    for name in arguments.models or (["MLP"] if arguments.quick else MODELS):
        build = MODELS[name]
        found: dict[str, Any] = {}
        height, width = build().input_shape[1:3]
        images = np.asarray(tf.image.resize(x, (height, width)))
        runs = contenders(build, grid, images, y, found)
        seconds = take_turns(runs, num_rounds, generator, WARM_UP_EPOCHS)
        medians = {run: float(np.median(times)) for run, times in seconds.items()}
        best = min((run for run in medians if run.startswith("fit")), key=lambda run: medians[run])
        results["models"][name] = {
            "examples_per_second": {run: NUM_TRAINING / median for run, median in medians.items()},
            "best_fit": best,
            "ratio": {run: ratio(seconds[best], seconds[run], generator) for run in found},
            "default_over_plain": ratio(seconds["train + stabilize"], seconds["train"], generator),
            "loop": found,
            "seconds": seconds,
        }
        report(name, results["models"][name])
        if arguments.output:
            arguments.output.write_text(json.dumps(results, indent=1), encoding="utf-8")


def report(name: str, result: dict[str, Any]) -> None:
    print(f"\n{name}: {NUM_TRAINING} digits, batches of {BATCH_SIZE}, Adam")
    print(f"{'':58}{'examples/s':>12}{'times best fit':>16}{'95 % interval':>18}")
    for run, speed in result["examples_per_second"].items():
        row = f"{run:58}{speed:12,.0f}"
        if run in result["ratio"]:
            median, low, high = result["ratio"][run]
            goal, bound = ("floor", FLOOR) if run == "train" else ("aim", AIM)
            verdict = "reached" if median >= bound else "missed"
            row += f"{median:16.2f}{f'{low:.2f} .. {high:.2f}':>18}  {goal} {bound}: {verdict}"
        elif run == result["best_fit"]:
            row += f"{1:16.2f}"
        print(row)
    median, low, high = result["default_over_plain"]
    print(
        f"train, default over plain Adam: {median:.2f} ({low:.2f} .. {high:.2f}), "
        f"floor {DEFAULT_FLOOR}: {'reached' if median <= DEFAULT_FLOOR else 'missed'}"
    )
    for run, loop in result["loop"].items():
        times = ", ".join(f"{form} {ms:.3g}" for form, ms in loop["milliseconds_per_step"].items())
        print(
            f"{run}: form {loop['form']!r} ({loop['reason']}; ms per step: {times}); the probe, "
            f"compilation included, took {loop['seconds']:.1f} s and is not counted"
        )


if __name__ == "__main__":
    main()
