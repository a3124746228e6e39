"""Runs of one model with one optimizer, bare and by its recipe, over a grid of rates."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import gradstab
from gradstab.optimizers.step.learning_rate import adjustable_parts
from schedule_parts.tasks import Task, task

BARE, RECIPE = "bare", "recipe"
OPTIMIZERS = {
    "adagrad": keras.optimizers.Adagrad,
    "rmsprop": keras.optimizers.RMSprop,
    "adam": keras.optimizers.Adam,
}
DEFAULT_RATE = 1e-3  # of all three in Keras
# Rates by factors of 2, as exponents over the default rate: what every seed runs.
GRIDS = {
    ("adagrad", BARE): range(3, 9),
    ("adagrad", RECIPE): range(3, 10),
    ("rmsprop", BARE): range(-2, 4),
    ("rmsprop", RECIPE): range(-2, 6),
    ("adam", BARE): range(-1, 5),
    ("adam", RECIPE): range(6),
}
QUICK_GRID = range(2)
# Beyond the grid, each seed goes on upwards until a rate is neither usable nor the best so far.
MOST_BEYOND = 4
# Points below the best fixed rate within which a rate counts as usable.
USABLE = 2.0


def measure(model_name: str, optimizer_name: str, seed: int, quick: bool) -> dict[str, Any]:
    """Return the scores over the epochs of all runs of one seed, by way and rate."""
    keras.utils.set_random_seed(seed % 2**32)
    work = task(model_name, quick)
    ways = {BARE: _bare(optimizer_name), RECIPE: _recipe(optimizer_name, work)}
    found: dict[str, dict[str, Any]] = {}
    best = -math.inf
    started = time.perf_counter()
    for way, (optimizer, set_rate) in ways.items():
        runner = Runner(work, optimizer, seed)
        found[way] = {}
        grid = QUICK_GRID if quick else GRIDS[optimizer_name, way]
        exponents = list(grid)
        if way == BARE and 0 not in exponents:
            exponents.insert(0, 0)
        top, before = max(exponents), -math.inf
        while exponents:
            exponent = exponents.pop(0)
            set_rate(DEFAULT_RATE * 2.0**exponent)
            found[way][str(exponent)] = scores = runner.run()
            last = -math.inf if scores["test"][-1] is None else scores["test"][-1]
            if way == BARE:
                best = max(best, last)
            print(f"{way} {DEFAULT_RATE * 2.0**exponent:.3g}: {last:.2f}", file=sys.stderr)
            goes_on = last >= best - USABLE or last > before
            before = max(before, last)
            if not exponents and not quick and goes_on and exponent - top < MOST_BEYOND:
                exponents.append(exponent + 1)
    return {
        "model": model_name,
        "optimizer": optimizer_name,
        "seed": seed,
        "data": work.described,
        "epochs": work.epochs,
        "steps_per_epoch": work.steps_per_epoch,
        "seconds": round(time.perf_counter() - started, 1),
        "scores": found,
    }


def _bare(name: str) -> tuple[Any, Callable[[float], None]]:
    optimizer = OPTIMIZERS[name](DEFAULT_RATE)
    return optimizer, lambda rate: setattr(optimizer, "learning_rate", rate)


def _recipe(name: str, work: Task) -> tuple[Any, Callable[[float], None]]:
    """Return the recipe with a peak of 1, and what sets the peak without tracing anew."""
    make = getattr(gradstab.recipes, name)
    optimizer = make(1.0, epochs=work.epochs, steps_per_epoch=work.steps_per_epoch)
    (schedule,) = adjustable_parts(optimizer.inner_optimizer)
    return optimizer, lambda rate: setattr(schedule, "factor", rate)


class Runner:
    """Trains one model again and again from the same weights, in the same order of the data.

    Args:
        work: Data and model.
        optimizer: Stays the same, so that nothing is traced anew; its state is put back.
        seed: Draws the weights and the orders.
    """

    def __init__(self, work: Task, optimizer: Any, seed: int) -> None:
        self._work = work
        self._seed = seed
        keras.utils.set_random_seed(seed % 2**32)
        self._model = work.build()
        self._model.compile(
            optimizer,
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            steps_per_execution=work.steps_per_epoch,
            jit_compile=False,
        )
        optimizer.build(self._model.trainable_variables)
        self._state = {
            id(variable): (variable, np.array(variable))
            for variable in [*self._model.variables, *optimizer.variables]
            # The rate, or its factor, is what differs from run to run.
            if not variable.path.endswith(("learning_rate", "learning_rate_factor"))
        }

    def run(self) -> dict[str, list[float | None]]:
        """Return the scores on validation and test data after each epoch; `None` for NaN."""
        for variable, value in self._state.values():
            variable.assign(value)
        work, draw = self._work, np.random.default_rng(self._seed)
        count = work.steps_per_epoch * work.batch_size
        scores: dict[str, list[float | None]] = {"validation": [], "test": []}
        for _ in range(work.epochs):
            order = draw.permutation(len(work.train[0]))[:count]
            self._model.fit(
                *(part[order] for part in work.train),
                batch_size=work.batch_size,
                shuffle=False,
                verbose=0,
            )
            for name, values in scores.items():
                found = self._model.evaluate(
                    *getattr(work, name), batch_size=128, verbose=0, return_dict=True
                )
                score = work.score(found)
                # A net that is NaN all over still has an accuracy.
                whole = math.isfinite(score) and math.isfinite(found["loss"])
                values.append(round(score, 4) if whole else None)
        return scores
