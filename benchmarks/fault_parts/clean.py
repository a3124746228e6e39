"""Clean runs that look sick: warm restarts, small batches, noisy labels, rare classes."""

from __future__ import annotations

import random
from typing import Any

import keras
import numpy as np

from fault_parts import faults, nets, runs


def _noisy(batches: faults.Batches, _: Any) -> list[Any]:
    draw = np.random.default_rng(5)
    wrong = draw.random(batches.y.shape[:2]) < 0.2
    batches.y[wrong] = np.roll(batches.y[wrong], 3, axis=-1)
    return []


def _imbalanced(batches: faults.Batches, _: Any) -> list[Any]:
    # Of nine classes next to nothing counts.
    batches.weight *= np.where(batches.y.argmax(-1) == 0, 1.0, 0.05).astype("float32")
    return []


def _restarting(optimizer: str) -> Any:
    rate = keras.optimizers.schedules.CosineDecayRestarts(
        {"Adam": 5e-3, "SGD": 0.1}[optimizer], first_decay_steps=60, t_mul=1.5
    )
    if optimizer == "Adam":
        return keras.optimizers.Adam(rate)
    return keras.optimizers.SGD(rate, momentum=0.9)


def run(number: int, first: int, epochs: int) -> dict[str, Any]:
    """Return what came of a clean run, the same for each number."""
    draw = random.Random(f"{first} clean {number}")
    kind = ("plain", "warm restarts", "batches of four", "noisy labels", "rare classes")[number % 5]
    net, optimizer = draw.choice(list(nets.NETS)), draw.choice(list(nets.OPTIMIZERS))
    column = draw.choice(("guard", "guard, plain optimizer"))
    batch = 4 if kind == "batches of four" else nets.BATCH
    if batch == 4:
        made = {"Adam": keras.optimizers.Adam(1e-3), "SGD": keras.optimizers.SGD(0.01)}[optimizer]
        epochs = max(1, epochs // 5)
    elif kind == "warm restarts":
        made = _restarting(optimizer)
    else:
        made = nets.OPTIMIZERS[optimizer]()
    strike = {"noisy labels": _noisy, "rare classes": _imbalanced}.get(kind, runs.harmless)
    steps = epochs * (len(nets.digits()[0]) // batch)
    seed = draw.randrange(10_000)
    trainee = runs.Trainee(*nets.build(net, seed), made, column)
    result = runs.fit(trainee, seed, steps, strike, batch)
    return {"kind": f"{kind}, {net}, {optimizer}, {column}", **result}
