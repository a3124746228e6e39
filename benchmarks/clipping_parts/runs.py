"""Runs of one model with one optimizer behind one candidate, compiled once.

A run is a plan: the rate of every step, and what is wrong with which batch. It is laid down before
training begins, in arrays that the compiled loop reads, outside of optimizer and transforms.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from clipping_parts import candidates
from clipping_parts.tasks import BATCH, MEMORY, MEMORY_STEPS, Task, task
from gradstab.optimizers.watching.find import stabilized_optimizer

STEPS, QUICK_STEPS = 400, 24
# Steps before the share of clipped steps is counted.
WARM_UP, QUICK_WARM_UP = 100, 8
EVERY = 200  # steps in which one batch is hit
SPIKE = 1e3
RATE_SPIKE, RATE_SPIKE_STEPS = 100.0, 1
EXPLODING = 4.0  # times the weights of the usual start
BASE_RATE = 1e-3

FAULTS = ("spikes", "rate spike", "NaN", "exploding start")
EXPLODING_MODELS = ("MLP", "CNN", "LSTM")
# Rates of the plain optimizer, as powers of 2 over `BASE_RATE`, before it goes on at both ends.
GRIDS = {"SGD": range(2, 10), "Adam": range(-2, 5)}
QUICK_GRID = range(2, 4)
# For the problems of memory every candidate has the same rates, and its best one counts.
MEMORY_GRIDS = {"SGD": range(3, 7), "Adam": range(-1, 3)}
MOST_OCTAVES = 14


@dataclasses.dataclass
class Plan:
    """What a run meets.

    Attributes:
        rates: Learning rate of each step.
        inputs: What the inputs of each batch are multiplied by (images), or its loss (text).
        shift: What is added to the labels of each batch, modulo the number of classes.
        nan: Whether the first example of each batch is not a number.
        start: What the kernels are multiplied by before the run.
    """

    rates: Any
    inputs: Any
    shift: Any
    nan: Any
    start: float = 1.0


def plan(rate: float, fault: str | None, steps: int, draw: np.random.Generator) -> Plan:
    """Return a run whose rate falls along a cosine to zero, with a fault or without.

    Args:
        rate: At the first step.
        fault: One of `FAULTS`, or `None`.
        steps: Length of the run.
        draw: Places the faults.
    """
    rates = rate * 0.5 * (1 + np.cos(np.pi * np.arange(steps) / steps))
    made = Plan(rates, np.ones(steps), np.zeros(steps, int), np.zeros(steps, bool))
    every = min(EVERY, steps // 2)
    places = np.arange(0, steps - every + 1, every)
    places = places + draw.integers(0, every, len(places))
    if fault == "spikes":
        made.inputs[places], made.shift[places] = SPIKE, 1
    elif fault == "NaN":
        made.nan[places] = True
    elif fault == "rate spike":
        begin = int(draw.integers(steps // 4, 3 * steps // 4))
        made.rates[begin : begin + RATE_SPIKE_STEPS] *= RATE_SPIKE
    elif fault == "exploding start":
        made.start = EXPLODING
    return made


class Runner:
    """Trains one model again and again, from the weights of a seed.

    Args:
        work: Data and model.
        optimizer: Stays the same, so that nothing is traced anew; its state is put back.
        steps: Length of a run, a multiple of `warm_up`, so that one loop does for all of it.
        warm_up: Steps before clips are counted.
    """

    def __init__(self, work: Task, optimizer: Any, steps: int, warm_up: int) -> None:
        self._work, self.optimizer = work, optimizer
        self._steps, self._warm_up = steps, warm_up
        self._model = work.build()
        self._ours = stabilized_optimizer(optimizer)
        if self._ours is not None:
            self._ours.bind(self._model)
        optimizer.build(self._model.trainable_variables)
        self._state = [(variable, np.array(variable)) for variable in optimizer.variables]
        self._data = tuple(tf.constant(part) for part in work.train)
        self._loop = tf.function(self._steps_of, autograph=True, jit_compile=work.jit_compile)
        self._starts: dict[int, list[Any]] = {}

    def run(self, of: Plan, seed: int) -> dict[str, Any]:
        """Return the scores at the end, and the shares of steps clipped and skipped."""
        self._reset(of, seed)
        draw = np.random.default_rng(seed)
        count = len(self._work.train[0]) // BATCH * BATCH
        rounds = math.ceil(self._steps * BATCH / count)
        order = np.concatenate(
            [draw.permutation(len(self._work.train[0]))[:count] for _ in range(rounds)]
        )[: self._steps * BATCH].reshape(self._steps, BATCH)
        columns = (order, *(np.float32(each) for each in (of.rates, of.inputs)), of.shift, of.nan)
        counted = []
        for begin in range(0, self._steps, self._warm_up):
            part = slice(begin, begin + self._warm_up)
            self._loop(*(tf.constant(column[part]) for column in columns))
            counted.append(self._counts())
        after = (counted[-1] - counted[0]) / (self._steps - self._warm_up)
        return {
            "validation": self._score(self._work.validation),
            "test": self._score(self._work.test),
            "clipped": round(float(after[0]), 4),
            "skipped": round(float(after[1]), 4),
        }

    def _reset(self, of: Plan, seed: int) -> None:
        if seed not in self._starts:
            keras.utils.set_random_seed(seed % 2**32)
            self._starts[seed] = self._work.build().get_weights()
        for variable, value in self._state:
            variable.assign(value)
        for variable, value in zip(self._model.weights, self._starts[seed], strict=True):
            grows = of.start != 1.0 and "kernel" in variable.path and value.ndim > 1
            variable.assign(value * of.start if grows else value)

    def _counts(self) -> Any:
        if self._ours is None:
            return np.zeros(2)
        reading = self._ours.telemetry.peek()
        touched = reading.total_clipped + reading.total_limited
        return np.array([touched, reading.total_skipped], float)

    def _steps_of(self, order: Any, rates: Any, inputs: Any, shift: Any, nan: Any) -> None:
        for step in tf.range(tf.shape(order)[0]):
            self._step(order[step], rates[step], inputs[step], shift[step], nan[step])

    @tf.autograph.experimental.do_not_convert
    def _step(self, rows: Any, rate: Any, factor: Any, shift: Any, nan: Any) -> None:
        x, y = (tf.gather(part, rows) for part in self._data)
        if self._work.kind != "numbers":
            y = tf.cast((tf.cast(y, tf.int64) + shift) % self._work.num_classes, tf.int32)
        first = tf.where(nan, np.float32(np.nan), np.float32(1.0))
        scales = factor * tf.concat([first[None], tf.ones((BATCH - 1,))], 0)
        weights = tf.ones((BATCH,))
        if x.dtype.is_integer and self._work.kind != "images":
            weights = scales  # There is no such thing as a symbol times 1000.
        else:
            x = tf.cast(x, tf.float32) * tf.reshape(scales, (BATCH, *[1] * (x.shape.rank - 1)))
        inner = self.optimizer if self._ours is None else self._ours.inner_optimizer
        inner.learning_rate.assign(rate)
        with tf.GradientTape() as tape:
            losses, _ = self._losses(x, y, training=True)
            loss = self.optimizer.scale_loss(tf.reduce_mean(losses * weights))
        variables = self._model.trainable_variables
        gradients = tape.gradient(loss, variables)
        if self._ours is None:
            # Keras takes the rows of an embedding that occur twice for two gradients, which makes
            # Adam's steps longer. Here all sum them, or nothing else could be compared.
            gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
        self.optimizer.apply(gradients, variables)

    def _losses(self, x: Any, y: Any, training: bool) -> tuple[Any, Any]:
        """Return the loss of each example, and what tells how many are right."""
        outputs = self._model(x, training=training)
        if self._work.kind == "numbers":
            losses = tf.square(outputs[:, 0] - y)
            return losses, losses
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, outputs)
        right = tf.cast(tf.argmax(outputs, -1, tf.int32) == y, tf.float32)
        return tf.reduce_mean(tf.reshape(losses, (tf.shape(x)[0], -1)), axis=1), right

    @tf.function
    def _judge(self, x: Any, y: Any) -> tuple[Any, Any]:
        return tuple(map(tf.reduce_mean, self._losses(x, y, training=False)))

    def _score(self, data: tuple[Any, Any]) -> float | None:
        """Return the score; `None` where a net is not a number all over."""
        x, y = (tf.constant(part) for part in data)
        loss, right = map(
            float, self._judge(x, y if self._work.num_classes == 1 else tf.cast(y, tf.int32))
        )
        score = -100 * loss if self._work.kind in ("text", "numbers") else 100 * right
        return round(score, 4) if math.isfinite(loss) and math.isfinite(score) else None


def measure(
    model: str,
    optimizer: str,
    candidate: str,
    given: dict[str, Any],
    quick: bool,
    make: Callable[[str, str], Any] = candidates.make,
) -> dict[str, Any]:
    """Return all runs of a candidate: over the rates, and under each fault at the best fixed rate.

    Args:
        model: Name of a task.
        optimizer: "SGD" or "Adam".
        candidate: One of `candidates.names`, or what `make` knows.
        given: "seeds"; and, unless the candidate is the plain optimizer, its best "exponent" and
            the score from which on a rate is "usable".
        quick: Whether to run a few short ones.
        make: Returns the optimizer, from those two names.
    """
    started = time.perf_counter()
    work = task(model, quick)
    steps, warm_up = (QUICK_STEPS, QUICK_WARM_UP) if quick else (STEPS, WARM_UP)
    is_memory = model in MEMORY
    if is_memory and not quick:
        steps = MEMORY_STEPS
    runner = Runner(work, make(optimizer, candidate), steps, warm_up)

    def runs(exponent: int, fault: str | None) -> list[dict[str, Any]]:
        return [
            runner.run(
                plan(BASE_RATE * 2.0**exponent, fault, steps, np.random.default_rng([seed, 1])),
                seed,
            )
            for seed in given["seeds"]
        ]

    rates: dict[int, list[dict[str, Any]]] = {}
    if is_memory or candidate == candidates.PLAIN:
        for exponent in QUICK_GRID if quick else (MEMORY_GRIDS if is_memory else GRIDS)[optimizer]:
            rates[exponent] = runs(exponent, None)
        best, usable = _best(work, rates)
    else:
        best, usable = given["exponent"], given["usable"]
        rates[best] = runs(best, None)
    for way in () if quick or is_memory else (-1, 1):
        while (exponent := _next(rates, way, best, usable)) is not None:
            rates[exponent] = runs(exponent, None)
            if candidate == candidates.PLAIN:
                best, usable = _best(work, rates)
    faults = () if is_memory else FAULTS[:1] if quick else FAULTS
    return {
        "model": model,
        "optimizer": optimizer,
        "candidate": candidate,
        "chain": repr(runner.optimizer),
        "data": work.described,
        "steps": steps,
        "exponent": best,
        "usable": usable,
        "rates": {str(exponent): rates[exponent] for exponent in sorted(rates)},
        "faults": {
            fault: runs(best, fault)
            for fault in faults
            if fault != "exploding start" or model in EXPLODING_MODELS
        },
        "seconds": round(time.perf_counter() - started, 1),
    }


def _best(work: Task, rates: Mapping[int, Sequence[Mapping[str, Any]]]) -> tuple[int, float]:
    """Return the exponent that is best on validation data, and from where on a rate is usable."""
    best = max(sorted(rates), key=lambda exponent: median_score(rates[exponent], "validation"))
    return best, usable_from(work, median_score(rates[best], "test"))


def _next(
    rates: Mapping[int, Sequence[Mapping[str, Any]]], way: int, best: int, usable: float
) -> int | None:
    """Return the exponent to go on with; `None` once two in a row are not usable."""
    end = max(rates) if way > 0 else min(rates)
    last = [rates[exponent] for exponent in (end, end - way) if exponent in rates]
    goes_on = any(median_score(each, "test") >= usable for each in last)
    return end + way if goes_on and abs(end - best) < MOST_OCTAVES else None


def usable_from(work: Task, best: float) -> float:
    """Return the score from which on a rate is usable: nine tenths of what the best one gains."""
    if work.kind == "text":
        chance = -100 * math.log(work.num_classes)
    else:
        chance = -100 / 6 if work.kind == "numbers" else 100 / work.num_classes
    return chance + 0.9 * (best - chance)


def median_score(runs: Sequence[Mapping[str, Any]], of: str) -> float:
    """Return the median; a run that ended in NaN is worse than any other."""
    return statistics.median(-1e9 if run[of] is None else run[of] for run in runs)
