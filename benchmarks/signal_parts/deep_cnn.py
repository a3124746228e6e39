"""A plain tanh CNN of 200 layers on Fashion-MNIST, from delta-orthogonal and from Glorot kernels.

Two convolutions with stride 2 bring 28×28 to 7×7 with 16 and 32 channels; then 3×3 convolutions of
32 channels up to 200, or 50, layers with weights; the last one is dense, on all positions. No
normalization, no shortcuts. 500 steps of Adam on batches of 64 of a fixed subset of 20,000 images;
the rate is the best of the same three for each start, by accuracy on 2,000 other training images
with the first seed; the score is accuracy on the 10,000 test images. `DeltaOrthogonal` has gain 1,
which is critical for tanh without biases. With the mean over positions in place of all of
them every position pulls the same way: no rate down to 1e-4 trains 200 layers so.
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

import keras
import numpy as np

import gradstab
from gradstab.initializers import DeltaOrthogonal

NAME = "Tanh CNNs of 200 and of 50 layers on Fashion-MNIST"
FLOOR, AIM, AIM_AHEAD = 0.60, 0.75, 0.40
STEPS, BATCH, SEEDS, WIDTH = 500, 64, 3, 32
TRAINED, VALIDATED = 20_000, 2_000
RATES = (3e-4, 1e-4, 3e-5)
STARTS = ("delta-orthogonal", "Glorot")


def wanted(quick: bool) -> dict[str, float]:
    """Name the results, with the seconds that each is expected to take on two cores."""
    if quick:
        return {f"{STARTS[0]}, 10 layers": 15.0}
    names = {f"{start}, {depth} layers": depth for depth in (200, 50) for start in STARTS}
    return {name: depth * 4.0 for name, depth in names.items()}


def measure(name: str, seeds: int, quick: bool) -> dict[str, Any]:
    """Train from one start at one depth: at each rate with one seed, at the best with all."""
    start, _, depth = name.removesuffix(" layers").partition(", ")
    data = _digits() if quick else _clothes()
    runs: list[dict[str, float]] = []

    def run(place: int, rate: float) -> None:
        seed = (seeds + place) % 2**31
        runs.append(_run(start, int(depth), seed, rate, data, 20 if quick else STEPS))
        print(f"{name}: {runs[-1]}", file=sys.stderr, flush=True)

    for rate in RATES[1:2] if quick else RATES:
        run(0, rate)
    for place in range(1, 1 if quick else SEEDS):
        run(place, _best(runs)[0])
    return {"runs": runs}


def _clothes() -> tuple[Any, ...]:
    found = gradstab.data.load("fashion_mnist", seed=0)
    (x, y), (x_test, y_test) = found.arrays("train"), found.arrays("test")
    x, x_test = (each.astype("float32") / 127.5 - 1 for each in (x, x_test))
    end = TRAINED + VALIDATED
    return x[:TRAINED], y[:TRAINED], x[TRAINED:end], y[TRAINED:end], x_test, y_test


def _digits() -> tuple[Any, ...]:
    data = gradstab.data.load("digits", batch_size=64)
    arrays = []
    for part in (data.train.take(3), data.validation.take(1), data.test.take(1)):
        images, labels = zip(*[(x.numpy(), y.numpy()) for x, y in part], strict=True)
        arrays += [np.concatenate(images) / 8 - 1, np.concatenate(labels)]
    return tuple(arrays)


def _run(
    start: str, depth: int, seed: int, rate: float, data: tuple[Any, ...], steps: int
) -> dict[str, float]:
    keras.utils.set_random_seed(seed)
    x, y, x_validation, y_validation, x_test, y_test = data

    def convolution(filters: int, strides: int = 1) -> Any:
        kernel: Any = "glorot_uniform"
        if start == STARTS[0]:
            kernel = DeltaOrthogonal(seed=int(generator.integers(2**31)))
        return keras.layers.Conv2D(
            filters, 3, strides, "same", activation="tanh", kernel_initializer=kernel
        )

    generator = np.random.default_rng(seed)
    model = keras.Sequential([keras.Input(x.shape[1:]), convolution(WIDTH // 2, 2)])
    model.add(convolution(WIDTH, 2))
    for _ in range(depth - 3):
        model.add(convolution(WIDTH))
    model.add(keras.layers.Flatten())
    model.add(keras.layers.Dense(10))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"], jit_compile=False)
    places = generator.integers(len(x), size=(steps, BATCH)).ravel()
    model.fit(x[places], y[places], batch_size=BATCH, shuffle=False, verbose=0)
    return {
        "rate": rate,
        "seed": seed,
        "validation": model.evaluate(x_validation, y_validation, 500, verbose=0)[1],
        "test": model.evaluate(x_test, y_test, 500, verbose=0)[1],
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the test accuracy of each start and depth at its best rate."""
    best = {name: _best(result["runs"]) for name, result in results.items()}
    lines = ["| start, depth | best rate | test accuracy: median (all) |", "|---|---|---|"]
    for name, (rate, tests) in best.items():
        every = ", ".join(f"{test:.3f}" for test in tests)
        lines.append(f"| {name} | {rate:g} | {statistics.median(tests):.3f} ({every}) |")
    deep = [best.get(f"{start}, 200 layers") for start in STARTS]
    if deep[0] is not None:
        reached = statistics.median(deep[0][1])
        lines.append(
            f"\n200 layers, delta-orthogonal: {reached:.3f}; floor {FLOOR}: "
            f"{'holds' if reached >= FLOOR else 'FAILS'}; aim {AIM}: "
            f"{'reached' if reached >= AIM else 'missed'}"
        )
        if deep[1] is not None:
            ahead = reached - statistics.median(deep[1][1])
            lines.append(
                f"Ahead of Glorot by {ahead:.3f}; floor 0: {'holds' if ahead > 0 else 'FAILS'}; "
                f"aim {AIM_AHEAD}: {'reached' if ahead >= AIM_AHEAD else 'missed'}"
            )
    return "\n".join(lines)


def _best(runs: list[dict[str, float]]) -> tuple[float, list[float]]:
    """Return the rate that validated best with the first seed, and its test accuracies."""
    first = [run for run in runs if run["seed"] == runs[0]["seed"]]
    rate = max(first, key=lambda run: run["validation"])["rate"]
    return rate, [run["test"] for run in runs if run["rate"] == rate]
