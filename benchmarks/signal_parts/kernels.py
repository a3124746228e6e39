"""How near to orthogonal kernels end that are regularised, at equal cost.

A CNN of four 3×3 convolutions (32-32-64-64, relu, pooling after each second) and a dense layer on
scikit-learn's digits, SGD .05 with momentum .9, He kernels, batches of 64. All kernels but the last
get one regularizer: none, `Orthogonal("soft")` or `Orthogonal("srip")`. Steps of the three are
timed in turn, and each net is trained for the number of steps that takes as long as the 30 epochs
of the one without. Nothing is chosen: all coefficients are reported, with the test accuracy.

Reported for the kernels as matrices W (inputs, outputs), with singular values σ: the largest over
all kernels of |σ² − 1|, and the mean over kernels of ‖WᵀW − I‖_F/√outputs, each for the shorter
side of the kernel.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import keras
import numpy as np

from gradstab.regularizers import Orthogonal
from gradstab.training import train

NAME = "orthogonal kernels"
SEEDS, EPOCHS, BATCH = 3, 30, 64
COEFFICIENTS = {
    "none": (0.0,),
    "soft": (1e-4, 1e-3, 1e-2),
    "srip": (1e-2, 1e-1, 1.0),
}
_TIMED_STEPS, _ROUNDS = 40, 5


def wanted(quick: bool) -> dict[str, float]:
    """Name the results, with the seconds that each is expected to take on two cores."""
    if quick:
        return {"orthogonal kernels, seed 1": 14.0}
    return {f"orthogonal kernels, seed {place}": 90.0 for place in range(1, SEEDS + 1)}


def measure(name: str, seeds: int, quick: bool) -> dict[str, Any]:
    """Train the nets of one seed."""
    seed = [seeds, int(name.rpartition(" ")[2])]
    first = int(np.random.default_rng(seed).integers(0, 2**31))
    parts = _digits(first)
    milliseconds = _step_times(first, parts, rounds=1 if quick else _ROUNDS)
    result: dict[str, Any] = {}
    for mode, coefficients in COEFFICIENTS.items():
        epochs = 2 if quick else EPOCHS
        steps = round(
            epochs * len(parts["train"][0]) // BATCH * milliseconds["none"] / milliseconds[mode]
        )
        for coefficient in coefficients[-1:] if quick else coefficients:
            run = _run(mode, coefficient, first, parts, steps)
            print(f"{mode} {coefficient}: {run}", file=sys.stderr, flush=True)
            key = mode if mode == "none" else f"{mode}, {coefficient:g}"
            result[key] = {**run, "milliseconds_per_step": milliseconds[mode]}
    return result


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return medians over seeds. No floor is asked: this is reported."""
    lines = [
        "| regularizer, coefficient | ms/step | steps | largest \\|σ² - 1\\| "
        "| ‖WᵀW - I‖_F/√outputs | test accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for key in next(iter(results.values()), {}):
        runs = [result[key] for result in results.values()]

        def median(name: str, runs: list[dict[str, Any]] = runs) -> float:
            return statistics.median(run[name] for run in runs)

        lines.append(
            f"| {key} | {median('milliseconds_per_step'):.2f} | {median('steps'):.0f} "
            f"| {median('largest'):.3f} | {median('spread'):.3f} "
            f"| {median('test_accuracy'):.3f} |"
        )
    count = f"{len(results)} seed{'s' * (len(results) != 1)}"
    return "\n".join([*lines, "", f"Medians over {count}; all nets trained as long as the first."])


def _digits(seed: int) -> dict[str, tuple[Any, Any]]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = (digits.images[..., None] / 16.0).astype("float32")
    order = np.random.default_rng(seed).permutation(len(x))
    x, y = x[order], digits.target[order].astype("int32")
    ends = {"train": slice(0, 1257), "test": slice(1257, None)}
    return {name: (x[part], y[part]) for name, part in ends.items()}


def _model(mode: str, coefficient: float, seed: int) -> Any:
    keras.utils.set_random_seed(seed)
    regularizer = None if mode == "none" else Orthogonal(mode, coefficient)
    arguments = {
        "padding": "same",
        "activation": "relu",
        "kernel_initializer": "he_normal",
        "kernel_regularizer": regularizer,
    }
    layers: list[Any] = [keras.Input((8, 8, 1))]
    for filters in (32, 64):
        layers += [keras.layers.Conv2D(filters, 3, **arguments) for _ in range(2)]
        layers.append(keras.layers.MaxPooling2D())
    model = keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(10)])
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9, global_clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    return model


def _step_times(seed: int, parts: dict[str, Any], rounds: int) -> dict[str, float]:
    """Time steps of the three nets in turn; the shortest counts, since all noise adds to it."""
    models = {mode: _model(mode, values[0], seed) for mode, values in COEFFICIENTS.items()}
    x, y = (part[: _TIMED_STEPS * BATCH // 4] for part in parts["train"])
    arguments = {"batch_size": BATCH, "jit_compile": False, "seed": 0, "verbose": 0}
    times: dict[str, list[float]] = {mode: [] for mode in models}
    for place in range(rounds + 1):
        for mode, model in models.items():
            started = time.perf_counter()
            train(model, (x, y), epochs=8, **arguments)
            if place:  # The first traces.
                steps = 8 * -(-len(x) // BATCH)
                times[mode].append(1e3 * (time.perf_counter() - started) / steps)
    return {mode: min(values) for mode, values in times.items()}


def _run(
    mode: str, coefficient: float, seed: int, parts: dict[str, Any], steps: int
) -> dict[str, Any]:
    model = _model(mode, coefficient, seed)
    x, y = parts["train"]
    whole, rest = divmod(steps, len(x) // BATCH)
    kept = len(x) // BATCH * BATCH
    arguments = {"batch_size": BATCH, "jit_compile": False, "seed": seed, "verbose": 0}
    if whole:
        train(model, (x[:kept], y[:kept]), epochs=whole, **arguments)
    if rest:
        train(model, (x[: rest * BATCH], y[: rest * BATCH]), epochs=1, **arguments)
    largest, spreads = 0.0, []
    for layer in model.layers:
        if not isinstance(layer, keras.layers.Conv2D):
            continue
        matrix = layer.kernel.numpy().astype("float64").reshape(-1, layer.filters)
        inputs, outputs = matrix.shape
        # Of the shorter side: no more vectors can be orthonormal than they have entries.
        matrix = matrix if inputs >= outputs else matrix.T
        distance = matrix.T @ matrix - np.eye(matrix.shape[1])
        largest = max(largest, float(np.max(np.abs(np.linalg.eigvalsh(distance)))))
        spreads.append(float(np.sqrt(np.sum(distance**2) / matrix.shape[1])))
    return {
        "steps": steps,
        "largest": largest,
        "spread": statistics.mean(spreads),
        "test_accuracy": float(model.evaluate(*parts["test"], verbose=0)[1]),
    }
