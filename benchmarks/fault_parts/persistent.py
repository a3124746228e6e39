"""Faults that last: bad examples, a pipeline that turns bad, a rate too high, an unstable net."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from fault_parts import faults, nets, runs

POINTS = 2.0


def _one_per_epoch(batches: faults.Batches, _: Any) -> list[Any]:
    per_epoch = len(nets.digits()[0]) // nets.BATCH
    batches.x[7::per_epoch, 3] = np.nan
    return []


def _scattered(batches: faults.Batches, _: Any) -> list[Any]:
    bad = np.random.default_rng(3).random(batches.x.shape[:2]) < 0.05
    batches.x[bad] = np.nan
    return []


def _turns_bad(batches: faults.Batches, _: Any) -> list[Any]:
    batches.x[len(batches.x) // 2 :] = np.nan
    return []


def _fast(factor: float) -> Callable[[str], Any]:
    def make(optimizer: str) -> Any:
        made = nets.OPTIMIZERS[optimizer]()
        made.learning_rate = float(made.learning_rate) * factor
        return made

    return make


def _usual(optimizer: str) -> Any:
    return nets.OPTIMIZERS[optimizer]()


def _unstable(seed: int) -> tuple[Any, nets.Backward]:
    keras.utils.set_random_seed(seed)
    hidden = [layers.Dense(64, keras.ops.exp, kernel_initializer="he_normal") for _ in range(4)]
    model = keras.Sequential([keras.Input((8, 8)), layers.Flatten(), *hidden, layers.Dense(10)])
    return model, nets.Backward()


# Name: what it does to the batches, how the optimizer is made, what builds another net, and whether
# it can be finished (else the rules that name the cause).
ROWS: dict[str, tuple[Any, Any, Any, tuple[str, ...]]] = {
    "one bad example per epoch": (_one_per_epoch, _usual, None, ()),
    "5 % bad examples": (_scattered, _usual, None, ()),
    "5 % bad examples, masked": (_scattered, _usual, None, ()),
    "pipeline turns bad": (_turns_bad, _usual, None, ("nonfinite-data", "nonfinite-gradients")),
    "rate x 100": (runs.harmless, _fast(100.0), None, ("learning-rate-too-high",)),
    "rate x 1000": (runs.harmless, _fast(1000.0), None, ("learning-rate-too-high",)),
    "unstable net": (
        runs.harmless,
        _usual,
        _unstable,
        ("nonfinite-gradients", "exploding-gradients", "learning-rate-too-high"),
    ),
}
ROWS = {
    f"{name}/{net}/{optimizer}/{column}": row
    for name, row in ROWS.items()
    for net, optimizer, column in (
        ("MLP", "Adam", "guard"),
        ("CNN", "SGD", "guard"),
        ("MLP", "SGD", "guard, plain optimizer"),
    )
}


def run(name: str, first: int, epochs: int) -> dict[str, Any]:
    """Return what came of a run with a fault that lasts."""
    strike, make, build, causes = ROWS[name]
    _, net, optimizer, column = name.split("/")
    seed = first % 1000
    steps = epochs * (len(nets.digits()[0]) // nets.BATCH)
    clean = runs.train(net, optimizer, "plain", seed, steps)["accuracy"]
    built = nets.build(net, seed) if build is None else build(seed)
    found = runs.fit(runs.Trainee(*built, make(optimizer), column), seed, steps, strike,
                     is_masked="masked" in name)  # fmt: skip
    if found["accuracy"] >= clean - POINTS and not found["raised"]:
        outcome = "finished"
    elif found["code"] in causes:
        outcome = "stopped, cause named"
    else:
        outcome = "MISSED"
    return {"name": name, "clean": clean, "outcome": outcome, **found}
