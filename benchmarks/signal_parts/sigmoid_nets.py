"""A net of 14 sigmoid layers, before and after `lsuv`.

Dense layers of 64 sigmoid units on scikit-learn's digits, Glorot kernels, Adam, 20 epochs of
batches of 32. The rate is the best of three by validation accuracy, for each start by itself. The
healthy twin is the same net with relu and He kernels. "Trains" means at least 0.8 of the twin's
accuracy above chance, on test data, in the median over seeds.
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

import keras

import gradstab
from gradstab.initializers import lsuv

NAME = "All-sigmoid nets of 14 layers"
DEPTH, WIDTH, EPOCHS, SEEDS, CHANCE, SHARE = 14, 64, 20, 3, 0.1, 0.8
RATES = (3e-3, 1e-3, 3e-4)
STARTS = ("healthy twin", "Glorot", "lsuv, centred", "lsuv, not centred")


def wanted(quick: bool) -> dict[str, float]:
    """Name the results, with the seconds that each is expected to take on two cores."""
    return dict.fromkeys(STARTS[2:3] if quick else STARTS, 8.0 if quick else 130.0)


def measure(name: str, seeds: int, quick: bool) -> dict[str, Any]:
    """Train from one start, at each rate and for each seed."""
    runs = []
    for place in range(1 if quick else SEEDS):
        for rate in RATES[1:2] if quick else RATES:
            runs.append(_run(name, (seeds + place) % 2**31, rate, 1 if quick else EPOCHS))
            print(f"{name}: {runs[-1]}", file=sys.stderr, flush=True)
    return {"runs": runs}


def _run(name: str, seed: int, rate: float, epochs: int) -> dict[str, float]:
    keras.utils.set_random_seed(seed)
    data = gradstab.data.load("digits", batch_size=32, seed=seed)
    twin = name == STARTS[0]
    activation, start = ("relu", "he_normal") if twin else ("sigmoid", "glorot_uniform")
    hidden = [keras.layers.Dense(WIDTH, activation, kernel_initializer=start) for _ in range(DEPTH)]
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Rescaling(1 / 16),
            keras.layers.Flatten(),
            *hidden,
            keras.layers.Dense(10),
        ]
    )
    if name.startswith("lsuv"):
        lsuv(model, next(iter(data.train))[0], center=name == STARTS[2], seed=seed)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    history = model.fit(data.train, validation_data=data.validation, epochs=epochs, verbose=0)
    return {
        "rate": rate,
        "seed": seed,
        "validation": history.history["val_accuracy"][-1],
        "test": model.evaluate(data.test, verbose=0)[1],
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the test accuracy of each start at its best rate."""
    best = {name: _best(result["runs"]) for name, result in results.items()}
    twin = best.get(STARTS[0], (0.0, float("nan")))[1]
    asked = CHANCE + SHARE * (twin - CHANCE)
    lines = ["| start | best rate | test accuracy | trains |", "|---|---|---|---|"]
    for name, (rate, accuracy) in best.items():
        trains = accuracy >= asked
        floor = {"Glorot": not trains, "lsuv, centred": trains}.get(name)
        verdict = "" if floor is None or twin != twin else " (holds)" if floor else " (FAILS)"
        lines.append(
            f"| {name} | {rate:g} | {accuracy:.3f} | {'yes' if trains else 'no'}{verdict} |"
        )
    return "\n".join(lines) + (
        f"\n\nAsked: trains after centred lsuv, and not before. It trains from {asked:.3f} on."
    )


def _best(runs: list[dict[str, float]]) -> tuple[float, float]:
    """Return the rate with the best median validation accuracy, and its median test accuracy."""
    rates = sorted({run["rate"] for run in runs})

    def median(rate: float, which: str) -> float:
        return statistics.median(run[which] for run in runs if run["rate"] == rate)

    rate = max(rates, key=lambda rate: median(rate, "validation"))
    return rate, median(rate, "test")
