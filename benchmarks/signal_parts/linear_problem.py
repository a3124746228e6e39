"""L1's sparsity and L2's shrinkage, trained through `fit`, against closed forms.

One dense unit without bias on 200 examples of 50 features; the loss is the mean squared error plus
the penalty, minimised by SGD on the whole batch with a rate that falls to zero. With XᵀX = n·I and
ŵ = Xᵀy/n the minimum is

    L1    sign(ŵ)·max(|ŵ| − l1/2, 0)
    L1L2  the same, divided by 1 + l2

and for L2, on features that are correlated, (XᵀX/n + l2·I)⁻¹ Xᵀy/n. Half of the true weights are
zero. A weight counts as zero below 1e-3.
"""

from __future__ import annotations

import sys
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradstab.regularizers import L1, L1L2, L2

NAME = "linear problem"
FLOOR = 1e-3  # largest distance of a weight from the closed form
EXAMPLES, FEATURES = 200, 50
RATE, LAST_RATE, STEPS, SEEDS = 0.1, 1e-5, 10_000, 3
L1_COEFFICIENT, L2_COEFFICIENT = 0.4, 0.5
PENALTIES = ("L1", "L2", "L1L2")


def wanted(quick: bool) -> dict[str, float]:
    """Name the results, with the seconds that each is expected to take on two cores."""
    return dict.fromkeys(PENALTIES[:1] if quick else PENALTIES, 4.0 if quick else 12.0)


def measure(name: str, seeds: int, quick: bool) -> dict[str, Any]:
    """Train with one penalty, on one data set per seed."""
    runs = []
    for place in range(1 if quick else SEEDS):
        draw = np.random.default_rng([seeds, place, PENALTIES.index(name)])
        runs.append(_run(name, draw, 2_000 if quick else STEPS))
        print(f"{name}: {runs[-1]}", file=sys.stderr, flush=True)
    return {"runs": runs}


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the largest distance from the closed form of each penalty."""
    lines = [
        "| penalty | largest distance of a weight | zero weights: trained, closed form | floor |",
        "|---|---|---|---|",
    ]
    for name, result in results.items():
        largest = max(run["distance"] for run in result["runs"])
        zeros = ", ".join(f"{run['zeros']} = {run['exact_zeros']}" if
                          run["zeros"] == run["exact_zeros"] else
                          f"{run['zeros']} ≠ {run['exact_zeros']}"
                          for run in result["runs"])  # fmt: skip
        same = all(run["zeros"] == run["exact_zeros"] for run in result["runs"])
        verdict = "holds" if largest <= FLOOR and same else "is missed"
        lines.append(f"| {name} | {largest:.1e} | {zeros} | 1e-3 {verdict} |")
    return "\n".join(lines)


def _run(name: str, draw: np.random.Generator, steps: int) -> dict[str, Any]:
    x = draw.normal(size=(EXAMPLES, FEATURES))
    if name == "L2":
        x = x @ draw.normal(size=(FEATURES, FEATURES)) / np.sqrt(FEATURES)
        x /= np.sqrt(np.linalg.eigvalsh(x.T @ x / EXAMPLES)[-1])
    else:
        x = np.linalg.qr(x)[0] * np.sqrt(EXAMPLES)
    true = draw.normal(size=FEATURES) * (np.arange(FEATURES) % 2)
    y = x @ true + 0.1 * draw.normal(size=EXAMPLES)
    exact = _closed_form(name, x, y)
    penalty = {
        "L1": lambda: L1(L1_COEFFICIENT),
        "L2": lambda: L2(L2_COEFFICIENT),
        "L1L2": lambda: L1L2(L1_COEFFICIENT, L2_COEFFICIENT),
    }[name]()
    model = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(1, use_bias=False, kernel_regularizer=penalty),
        ]
    )
    # The penalty has a kink at 0, over which a weight jumps by the rate, to come back ever slower.
    schedule = keras.optimizers.schedules.ExponentialDecay(RATE, steps, LAST_RATE / RATE)
    model.compile(keras.optimizers.SGD(schedule), "mse", steps_per_execution=50)
    whole = tf.data.Dataset.from_tensors((x.astype("float32"), y[:, None].astype("float32")))
    model.fit(whole.repeat(), steps_per_epoch=steps, shuffle=False, verbose=0)
    weights = model.get_weights()[0][:, 0].astype("float64")
    return {
        "distance": float(np.max(np.abs(weights - exact))),
        "zeros": int(np.sum(np.abs(weights) < 1e-3)),
        "exact_zeros": int(np.sum(np.abs(exact) < 1e-3)),
    }


def _closed_form(name: str, x: Any, y: Any) -> Any:
    unpenalized = x.T @ y / EXAMPLES
    if name == "L2":
        return np.linalg.solve(x.T @ x / EXAMPLES + L2_COEFFICIENT * np.eye(FEATURES), unpenalized)
    sparse = np.sign(unpenalized) * np.maximum(np.abs(unpenalized) - L1_COEFFICIENT / 2, 0)
    return sparse / (1 + L2_COEFFICIENT) if name == "L1L2" else sparse
