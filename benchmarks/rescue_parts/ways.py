"""Ways to rescue a faulty model, each with what it would do in a script."""

from __future__ import annotations

import dataclasses
import inspect
import runpy
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

import gradstab
from gradstab.repairs.draft import Plan
from gradstab.repairs.prescriptions.catalogue import CATALOGUE
from gradstab.repairs.trial import TRACE, Bench

_BUDGET = 3.0


@dataclasses.dataclass(frozen=True)
class Twin:
    """A case's model, its data and its plan, with one seed."""

    case: Any
    faulty: bool
    seed: int

    def build(self) -> Any:
        """Return the model, from the first weights of the seed."""
        keras.utils.set_random_seed(self.seed)
        return self.case.build(self.faulty)

    def data(self) -> Any:
        """Return training and validation data."""
        told = "faulty" in inspect.signature(self.case.data).parameters
        return self.case.data(self.seed, **({"faulty": self.faulty} if told else {}))

    @property
    def plan(self) -> dict[str, int]:
        """Epochs and batch size."""
        budget = self.case.BUDGET
        return dict(budget if self.faulty else getattr(self.case, "HEALTHY_BUDGET", budget))

    def score(self, model: Any) -> float:
        """Return the case's own score, the worst where there is none."""
        _, _, x, y = self.data()
        return float(self.case.score(model, x, y))


def load(path: Path) -> Any:
    """Return a case."""
    return types.SimpleNamespace(**runpy.run_path(str(path)))


def fitted(twin: Twin, change: Callable[[Any], list[Any]] = lambda model: []) -> dict[str, Any]:
    """Train as planned; `change` may change the model, and returns callbacks."""
    started = time.perf_counter()
    model = twin.build()
    x, y, _, _ = twin.data()
    try:
        model.fit(x, y, verbose=0, callbacks=change(model), **twin.plan)
        score = twin.score(model)
    except Exception as error:  # Some of the faults are that `fit` raises.
        return {"score": None, "seconds": time.perf_counter() - started, "error": str(error)[:200]}
    return {"score": _finite(score), "seconds": time.perf_counter() - started}


def stabilized(model: Any) -> list[Any]:
    """Wrap the optimizer, and no more."""
    model.optimizer = gradstab.stabilize(model.optimizer)
    return []


def reduced(model: Any) -> list[Any]:
    """Let Keras lower the rate where the loss stands still."""
    return [keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=2)]


def at_random(twin: Twin) -> dict[str, Any]:
    """Try one to three prescriptions drawn at random, again and again, for as many steps."""
    draw = np.random.default_rng([twin.seed, 1])
    x, y, other_x, other_y = twin.data()
    plan = Plan(twin.plan["epochs"], twin.plan["batch_size"])
    bench = Bench(twin.build(), x, y, (other_x, other_y), plan, twin.seed)
    started = time.perf_counter()
    best = bench.trial([])
    bench.train(best, 1.0)
    unit, spent = TRACE + bench.planned_steps, 0.0
    while spent < (_BUDGET - 1) * unit:
        chosen = draw.choice(len(CATALOGUE), size=int(draw.integers(1, 4)), replace=False)
        trial = bench.trial([CATALOGUE[place] for place in chosen])
        bench.train(trial, 1.0)
        spent += trial.steps
        if trial.score > best.score:
            best = trial
    score = None if best.model is None or best.error else twin.score(best.model)
    return {
        "score": _finite(score),
        "seconds": time.perf_counter() - started,
        "actions": [type(each).__name__ for each in best.actions],
    }


def repaired(twin: Twin) -> dict[str, Any]:
    """Repair, and train what comes of it from other first weights."""
    model = twin.build()
    before = [np.array(weight) for weight in model.get_weights()]
    x, y, other_x, other_y = twin.data()
    started = time.perf_counter()
    found = gradstab.repair(
        model, x, y, validation_data=(other_x, other_y), budget=_BUDGET, seed=twin.seed, **twin.plan
    )
    seconds = time.perf_counter() - started
    same = all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    score = None
    if found.verdict in ("repaired", "improved"):
        keras.utils.set_random_seed(twin.seed + 1000)
        found.model.fit(*found.prepare(x, y), verbose=0, **found.fit_arguments)
        score = twin.score(found.model)
    return {
        "score": _finite(score),
        "seconds": seconds,
        "verdict": found.verdict,
        "untouched": bool(same),
        "actions": [action.name for action in found.actions],
        "roots": [root.code for root in found.diagnosis.roots if root.severity != "info"],
    }


def _finite(score: float | None) -> float | None:
    return None if score is None or not np.isfinite(score) else float(score)
