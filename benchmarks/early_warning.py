"""Does anything tell that a run will diverge, before its loss does?

    python benchmarks/early_warning.py [--quick] [--output FILE]
    python benchmarks/early_warning.py --table FILE

Four small nets on the digits, under Adam and SGD with momentum. Of each step is noted: how much
less the loss of its batch fell than gradient times update predicts (which takes a second forward
pass, so that no cheaper estimate can tell more), update over weights, gradient norm over its best,
what the moments lag behind, and the loss itself over its best, for comparison.

A run diverges organically if it had learned, and then loses four fifths of that for good: the rate
rises through the run, or is high from the start. A healthy one has the usual rate or a third of it,
some with noisy labels, batches of 4 or warm restarts, and its loss never is far above the first.
Each signal is taken as it is, and over its own median of the 100 steps before. Its threshold is the
highest value that it has in half of the healthy runs, and another time in half of all that trained
well, those at a high rate too; the other halves show the false alarms. The lead is counted from the
first warning to the step at which the run diverged.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import keras
import numpy as np
import tensorflow as tf
from fault_parts import nets
from harness.origin import git, origin
from harness.tables import markdown

from gradstab.cli.console import write_whole

STEPS = 400
SIGNALS = ("overshoot", "update ratio", "gradient norm", "moments' lag", "loss")
# Values are medians of so many steps, and nothing is told before that many have been seen.
WINDOW = 9
PAST = 100
# Warnings so many steps ahead count as such.
AHEAD = 10
HEALTHY = ("usual", "a third", "noisy labels", "batches of 4", "warm restarts")
LOSS = keras.losses.CategoricalCrossentropy(from_logits=True)


class Trainee:
    """A net whose run, all steps and what is noted of them, is one call.

    Args:
        net: One of `nets.NETS`.
        optimizer: One of `nets.OPTIMIZERS`.
    """

    def __init__(self, net: str, optimizer: str) -> None:
        self._model, _ = nets.build(net, 0)
        self._net = net
        self._optimizer = nets.OPTIMIZERS[optimizer]()
        self.rate = float(self._optimizer.learning_rate)
        self._optimizer.build(self._model.trainable_variables)
        variables = (*self._model.variables, *self._optimizer.variables)
        self._begun = [(v, np.array(v)) for v in variables]
        name = "velocity" if optimizer == "Adam" else "momentum"
        self._moments = [v for v in self._optimizer.variables if name in v.path]
        self._of_squares = optimizer == "Adam"
        self._run = tf.function(self._steps, reduce_retracing=True)

    def run(self, seed: int, rates: Any, batch: int, noise: float) -> Any:
        """Return what was noted of each step: (steps, 5), in the order of `SIGNALS`."""
        for variable, value in self._begun:
            variable.assign(value)
        self._model.set_weights(nets.build(self._net, seed)[0].get_weights())
        x, y, _ = nets.batches(seed, len(rates), batch)
        wrong = np.random.default_rng(seed).random(y.shape[:2]) < noise
        y[wrong] = np.roll(y[wrong], 3, axis=-1)
        return self._run(tf.constant(x), tf.constant(y), tf.constant(rates, tf.float32)).numpy()

    def _steps(self, x: Any, y: Any, rates: Any) -> Any:
        noted = tf.TensorArray(tf.float32, size=tf.shape(rates)[0])
        for number in tf.range(tf.shape(rates)[0]):
            noted = noted.write(number, self._step(x[number], y[number], rates[number]))
        return noted.stack()

    def _step(self, x: Any, y: Any, rate: Any) -> Any:
        weights = [v.value for v in self._model.trainable_variables]
        with tf.GradientTape() as tape:
            loss = LOSS(y, self._model(x, training=True))
        gradients = tape.gradient(loss, weights)
        before = [tf.identity(v) for v in weights]
        moments = [tf.identity(v.value) for v in self._moments]
        self._optimizer.learning_rate.assign(rate)
        self._optimizer.apply(gradients, self._model.trainable_variables)
        moved = [v - b for v, b in zip(weights, before, strict=True)]
        predicted = tf.add_n([tf.reduce_sum(g * d) for g, d in zip(gradients, moved, strict=True)])
        after = LOSS(y, self._model(x, training=True))
        overshoot = (after - loss - predicted) / (tf.abs(predicted) + 1e-12)
        lag = self._lag(gradients, moments)
        ratio = tf.linalg.global_norm(moved) / tf.linalg.global_norm(before)
        return tf.stack([overshoot, ratio, tf.linalg.global_norm(gradients), lag, loss])

    def _lag(self, gradients: Any, moments: Any) -> Any:
        """Return how far a gradient is from what the moments hold: of squares, or of direction."""
        if self._of_squares:
            size = sum(int(np.prod(v.shape)) for v in self._moments)
            shares = [
                tf.reduce_sum(g**2 / (v.value + 1e-12))
                for g, v in zip(gradients, self._moments, strict=True)
            ]
            return tf.sqrt(tf.add_n(shares) / size)
        dot = tf.add_n([tf.reduce_sum(-g * m) for g, m in zip(gradients, moments, strict=True)])
        norms = tf.linalg.global_norm(gradients) * tf.linalg.global_norm(moments)
        return 1.0 - dot / (norms + 1e-12)


def plan(quick: bool) -> list[dict[str, Any]]:
    """Return the runs: net, optimizer, kind, seed."""
    pairs = [(net, optimizer) for net in nets.NETS for optimizer in nets.OPTIMIZERS]
    if quick:
        pairs = pairs[2:3]
    repeats = 1 if quick else 3
    runs: list[dict[str, Any]] = []
    for net, optimizer in pairs:
        for repeat in range(repeats):
            kinds = [*HEALTHY] * (2 if repeat == 0 or quick else 1) + ["rising", "high"] * 2
            for place, kind in enumerate(kinds):
                seed = 1000 * repeat + place
                runs.append({"net": net, "optimizer": optimizer, "kind": kind, "seed": seed})
    return runs


def measure(trainee: Trainee, run: dict[str, Any]) -> Any:
    """Return what was noted of a run."""
    draw = random.Random(f"{run['net']} {run['optimizer']} {run['kind']} {run['seed']}")
    time = np.arange(STEPS) / STEPS
    factor = np.ones(STEPS)
    if run["kind"] == "a third":
        factor /= 3
    elif run["kind"] == "batches of 4":
        factor /= 4
    elif run["kind"] == "warm restarts":
        factor *= (1 + np.cos(np.pi * (np.arange(STEPS) % 100) / 100)) / 2
    elif run["kind"] == "rising":
        factor = 10 ** (draw.uniform(2.0, 3.5) * time)
    elif run["kind"] == "high":
        factor *= 10 ** draw.uniform(0.5, 2.5)
    batch = 4 if run["kind"] == "batches of 4" else nets.BATCH
    noise = 0.2 if run["kind"] == "noisy labels" else 0.0
    return trainee.run(run["seed"], trainee.rate * factor, batch, noise)


def medians(values: Any) -> Any:
    """Return the median of each step and those before it, as far as a window reaches."""
    # What is not finite is a warning in itself, but one that comes too late.
    values = np.where(np.isfinite(values), values, np.inf)
    return np.array([np.median(values[max(0, n - WINDOW + 1) : n + 1]) for n in range(len(values))])


def courses(noted: Any) -> dict[str, Any]:
    """Return what a warning is told by, for each signal: one number a step."""
    found = {name: medians(noted[:, place]) for place, name in enumerate(SIGNALS)}
    for name in ("gradient norm", "loss"):
        best = np.minimum.accumulate(found[name])
        # Near nothing a quantity may rise by any factor.
        found[name] = found[name] / np.maximum(best, 0.05 * found[name][WINDOW])
    found |= {f"{name}, over its past": over_past(values) for name, values in found.items()}
    for values in found.values():
        values[: 2 * WINDOW] = -np.inf
    return found


def over_past(values: Any) -> Any:
    """Return values over the median of those before them, without the latest."""
    past = [values[max(0, n - PAST) : max(1, n - WINDOW)] for n in range(len(values))]
    with np.errstate(invalid="ignore"):  # Where all is infinite, a ratio tells nothing.
        ratios = values / np.maximum(np.array([np.median(each) for each in past]), 1e-6)
    return np.nan_to_num(ratios, nan=-np.inf, posinf=np.inf, neginf=-np.inf)


def diverged_at(losses: Any) -> int | None:
    """Return the step from which on four fifths of what was learned are lost, or `None`."""
    middle = medians(losses)
    first = float(np.median(losses[:5]))
    best = np.minimum.accumulate(middle)
    learned = best < 0.7 * first
    lost = learned & ~(middle < best + 0.8 * (first - best))
    for step in np.flatnonzero(lost).tolist():
        if step >= 2 * WINDOW and lost[step : step + 25].all():
            return int(step)
    return None


def is_healthy(losses: Any) -> bool:
    """Whether a run learned, and its loss never was far above the first."""
    first = float(np.median(losses[:5]))
    middle = medians(losses)
    return bool(middle[-1] < 0.8 * first and middle.max() < 2.0 * first)


def judge(runs: list[dict[str, Any]], noted: list[Any]) -> list[dict[str, Any]]:
    """Return leads and false alarms of each signal, and write into the runs what became of them."""
    followed = list(map(courses, noted))
    for run, each in zip(runs, noted, strict=True):
        losses = each[:, SIGNALS.index("loss")]
        run["diverged"] = diverged_at(losses)
        is_well = run["diverged"] is None and is_healthy(losses)
        run["healthy"] = is_well and run["kind"] in HEALTHY
        run["held"] = is_well and run["kind"] not in HEALTHY
    healthy, held = ([n for n, run in enumerate(runs) if run[k]] for k in ("healthy", "held"))
    diverged = [n for n, run in enumerate(runs) if run["diverged"] is not None]
    rows = []
    for signal in followed[0]:

        def warned(place: int, threshold: float, signal: str = signal) -> int:
            """Return how many steps before its end a run is first warned of; 0 if it isn't."""
            end = runs[place]["diverged"] or STEPS
            over = np.flatnonzero(followed[place][signal][:end] > threshold)
            return int(end - over[0]) if len(over) else 0

        for name, known in (("healthy", healthy[::2]), ("well", healthy[::2] + held[::2])):
            threshold = max(float(followed[n][signal].max()) for n in known)
            leads = [warned(n, threshold) for n in diverged]
            rows.append(
                {
                    "signal": signal,
                    "threshold_of": name,
                    "threshold": threshold,
                    "median_lead": float(np.median(leads)) if leads else 0.0,
                    "ahead": sum(lead >= AHEAD for lead in leads),
                    "diverged": len(leads),
                    "false_alarms": sum(warned(n, threshold) > 0 for n in healthy[1::2]),
                    "healthy": len(healthy[1::2]),
                    "alarms_held": sum(warned(n, threshold) > 0 for n in held[1::2]),
                    "held": len(held[1::2]),
                }
            )
    return rows


def table(content: dict[str, Any]) -> str:
    """Return leads and false alarms as a table."""
    header = [
        "signal", "threshold from", "median lead (steps)", f"at least {AHEAD} ahead",
        "false alarms, healthy", "false alarms, high rate that held",
    ]  # fmt: skip
    words = {"healthy": "healthy runs", "well": "and those at a high rate"}
    rows = [
        [
            row["signal"],
            f"{words[row['threshold_of']]}: {row['threshold']:.3g}",
            f"{row['median_lead']:.0f}",
            f"{row['ahead']} of {row['diverged']}",
            f"{row['false_alarms']} of {row['healthy']}",
            f"{row['alarms_held']} of {row['held']}",
        ]
        for row in content["rows"]
    ]
    return markdown(header, rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one net and optimizer, few runs")
    parser.add_argument("--output", type=Path, help="write results as JSON to this file")
    parser.add_argument("--table", type=Path, help="print the table of a result file, and no more")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(arguments.table.read_text(encoding="utf-8"))))
        return 0
    known: dict[tuple[str, str], Trainee] = {}
    runs, noted = plan(arguments.quick), []
    for number, run in enumerate(runs):
        key = run["net"], run["optimizer"]
        if key not in known:
            known = {key: Trainee(*key)}
        noted.append(measure(known[key], run))
        print(f"{number + 1} of {len(runs)}: {run}", flush=True)
    rows = judge(runs, noted)
    content = {
        "benchmark": "early_warning", "quick": arguments.quick,
        **origin(git("rev-parse", "HEAD")), "rows": rows, "runs": runs,
    }  # fmt: skip
    if arguments.output:
        write_whole(arguments.output, json.dumps(content, indent=1, allow_nan=False))
    print(f"\n{table(content)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
