"""Short trainings from one state: one traced step, run with other rates, data and starts."""

from __future__ import annotations

import contextlib
import itertools
import math
from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf

from gradstab.diagnosis.looks.trial import Point, Run, merit
from gradstab.diagnosis.measuring.clock import Clock
from gradstab.diagnosis.measuring.losses import constant_loss, data_loss
from gradstab.diagnosis.measuring.skill import output_variation, skill_of
from gradstab.diagnosis.measuring.state import Snapshot
from gradstab.diagnosis.measuring.statistics import settle_statistics
from gradstab.keras_hooks.optimizer_state import learning_rate_source

# Steps of one call of the compiled function.
CHUNK: Final = 10
# Losses that a run keeps.
_KEPT: Final = 40


class _Scaled(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule times a factor that changes between runs."""

    def __init__(self, schedule: Any, factor: Any) -> None:
        super().__init__()
        self.schedule, self.factor = schedule, factor

    def __call__(self, step: Any) -> Any:
        return self.schedule(step) * self.factor

    def get_config(self) -> dict[str, Any]:
        return {"schedule": self.schedule, "factor": float(self.factor)}


class Laboratory:
    """Trains a model again and again from the same state.

    Args:
        model: A built, compiled model; whoever calls puts its state back.
        optimizer: An optimizer of its own for the trials, not built.
        train: Inputs, targets and weights to train on, as tensors.
        kept: The same, kept aside to judge on.
        batch_size: Rows of a step.
        seed: Chooses the order of the rows, the same in every run.
        kinds: Kind of each target, as in the look at the data.
    """

    def __init__(
        self,
        model: Any,
        optimizer: Any,
        train: tuple[Any, Any, Any],
        kept: tuple[Any, Any, Any],
        batch_size: int,
        seed: int,
        kinds: list[str],
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.train, self.kept = train, kept
        self.batch_size, self.seed = batch_size, seed
        self.kinds = kinds
        self._order = _order(len(keras.tree.flatten(train[0])[0]), batch_size, seed)
        self._factor = tf.Variable(1.0, trainable=False)
        self._penalty = tf.Variable(1.0, trainable=False)
        self._rate: float | None = None
        self._start = Snapshot(model)
        self._build()
        self._first_moments = [tf.identity(each.value) for each in optimizer.variables]
        self._function = tf.function(self._steps, reduce_retracing=True)
        self._judge = tf.function(self._evaluate, reduce_retracing=True)
        self.step_seconds = 0.0
        self._constant: dict[int, float | None] = {}

    def _build(self) -> None:
        plain = self.optimizer
        while getattr(plain, "inner_optimizer", None) is not None:
            plain = plain.inner_optimizer
        schedule = learning_rate_source(plain)
        if isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
            plain.learning_rate = _Scaled(schedule, self._factor)
        else:
            self._rate = float(plain.learning_rate)
        self._plain = plain
        self.optimizer.build(self.model.trainable_variables)

    def warm_up(self) -> None:
        """Trace the step, and time it."""
        self._reset(1.0, 1.0, None)
        rows = tf.constant(np.resize(self._order, (CHUNK, self._order.shape[1])))
        self._function(*self.train, rows)
        clock = Clock(math.inf)
        self._function(*self.train, rows).numpy()
        self.step_seconds = clock.seconds() / CHUNK

    def run(
        self,
        change: str,
        steps: int,
        *,
        rate: float = 1.0,
        data: tuple[Any, Any] | None = None,
        start: list[tuple[Any, Any]] | None = None,
        penalty: float = 1.0,
        seconds: float = math.inf,
    ) -> Run:
        """Train from the first state and say how it went.

        Args:
            change: What is changed, for the record.
            steps: Steps to do.
            rate: Factor on the learning rate.
            data: Inputs and targets to use instead, as `(train, kept)` triples.
            start: Variables with other values to begin with.
            penalty: Factor on the penalties.
            seconds: Seconds after which the run ends early.
        """
        train, kept = data or (self.train, self.kept)
        self._reset(rate, penalty, start)
        before = [tf.identity(each.value) for each in self.model.trainable_variables]
        losses: list[Any] = []
        points = [self._point(0, train, kept)] if change == "plan" else []
        done, ratio = 0, math.nan
        marks = sorted({math.ceil(steps * part / CHUNK) * CHUNK for part in (0.1, 0.33, 0.66)})
        clock, finite = Clock(seconds), True
        while done < steps:
            place = done % len(self._order)
            rows = self._order[place : place + CHUNK]
            if len(rows) < CHUNK:
                rows = np.concatenate([rows, self._order[: CHUNK - len(rows)]])
            losses.append(np.asarray(self._function(*train, tf.constant(rows))))
            done += CHUNK
            if done == CHUNK:
                ratio = self._moved(before) / CHUNK
            if not np.isfinite(losses[-1]).all():
                finite = False
                break
            if clock.left() < 0:
                break
            if done in marks and done < steps:
                points.append(self._point(done, train, kept))
        finite = finite and all(
            bool(tf.reduce_all(tf.math.is_finite(tf.cast(each.value, tf.float32))))
            for each in self.model.trainable_variables
        )
        variation = fitted = math.nan
        if finite:
            point, variation = self._end(done, train, kept)
            points.append(point)
            if change == "plan":
                fitted = self._fitted(done)
        all_losses = np.concatenate(losses) if losses else np.zeros(1)
        return Run(
            change=change,
            steps=done,
            points=tuple(points),
            first_loss=float(all_losses[0]),
            last_loss=float(all_losses[-max(1, len(all_losses) // 5) :].mean()),
            worst_loss=float(np.nan_to_num(all_losses, nan=np.inf).max()),
            finite=finite,
            losses=tuple(float(f"{v:.5g}") for v in _thinned(all_losses)),
            update_ratio=ratio,
            output_variation=variation,
            fitted=fitted,
        )

    def restart(self) -> None:
        """Put the model back to where every run begins."""
        self._start.restore()

    def _reset(self, rate: float, penalty: float, start: Any) -> None:
        self._start.restore()
        for variable, value in zip(self.optimizer.variables, self._first_moments, strict=True):
            variable.assign(value)
        if self._rate is not None:
            self._plain.learning_rate = self._rate * rate
        self._factor.assign(rate)
        self._penalty.assign(penalty)
        for variable, value in start or ():
            variable.assign(value)

    def _steps(self, x: Any, y: Any, weights: Any, order: Any) -> Any:
        losses = tf.TensorArray(tf.float32, size=CHUNK)
        for step in tf.range(CHUNK):
            rows = order[step]

            def cut(part: Any, rows: Any = rows) -> Any:
                return (
                    None
                    if part is None
                    else keras.tree.map_structure(lambda each: tf.gather(each, rows), part)
                )

            losses = losses.write(step, self._step(cut(x), cut(y), cut(weights)))
        return losses.stack()

    def _step(self, x: Any, y: Any, weights: Any) -> Any:
        with tf.GradientTape() as tape:
            outputs = self.model(x, training=True)
            loss, penalty = data_loss(self.model, x, y, outputs, weights, True)
            total = loss + self._penalty * penalty
            scaled = self.optimizer.scale_loss(total)
        variables = self.model.trainable_variables
        gradients = tape.gradient(scaled, [each.value for each in variables])
        known = [
            tf.zeros_like(variable.value) if gradient is None else gradient
            for gradient, variable in zip(gradients, variables, strict=True)
        ]
        if any(gradient is not None for gradient in gradients):
            self.optimizer.apply(known, variables)
        return loss

    def _evaluate(self, x: Any, y: Any, weights: Any) -> Any:
        outputs = self.model(x, training=False)
        return data_loss(self.model, x, y, outputs, weights, False)[0], outputs

    def _end(self, step: int, train: Any, kept: Any) -> tuple[Point, float]:
        settle_statistics(self.model, train[0])
        loss, outputs = self._judge(*kept)
        return self._judged(step, loss, outputs, kept), output_variation(
            kept[1], outputs, self.kinds
        )

    def _point(self, step: int, train: Any, kept: Any) -> Point:
        moving = [(v, tf.identity(v.value)) for v in self.model.non_trainable_variables]
        settle_statistics(self.model, train[0])
        loss, outputs = self._judge(*kept)
        for variable, value in moving:
            variable.assign(value)
        return self._judged(step, loss, outputs, kept)

    def _fitted(self, step: int) -> float:
        """Return the merit on as many rows that were trained on as are kept aside."""
        rows = len(keras.tree.flatten(self.kept[0])[0])
        seen = tuple(
            None if part is None else keras.tree.map_structure(lambda each: each[:rows], part)
            for part in self.train
        )
        loss, outputs = self._judge(*seen)
        return merit(self._judged(step, loss, outputs, seen))

    def _judged(self, step: int, loss: Any, outputs: Any, kept: Any) -> Point:
        constant = self.constant(kept, outputs)
        # Of a loss that may be negative, all of a constant answer's is the most that counts.
        explained = min((constant - float(loss)) / abs(constant), 1.0) if constant else math.nan
        return Point(step, explained, skill_of(kept[1], outputs, self.kinds))

    def constant(self, kept: Any, outputs: Any = None) -> float | None:
        """Return the loss of the best constant output on the rows kept aside."""
        key = id(keras.tree.flatten(kept[1])[0]) if kept[1] is not None else 0
        if key not in self._constant:
            if outputs is None:
                outputs = self._judge(*kept)[1]
            with contextlib.suppress(Exception):
                self._constant[key] = constant_loss(self.model, kept[0], kept[1], outputs, kept[2])
        return self._constant.get(key)

    def _moved(self, before: list[Any]) -> float:
        now = [each.value for each in self.model.trainable_variables]
        moved = sum(
            float(tf.reduce_sum(tf.square(tf.cast(a - b, tf.float32))))
            for a, b in zip(now, before, strict=True)
        )
        size = sum(float(tf.reduce_sum(tf.square(tf.cast(b, tf.float32)))) for b in before)
        return math.sqrt(moved / size) if size > 0 and math.isfinite(moved) else math.inf


def _order(rows: int, batch_size: int, seed: int) -> Any:
    """Return the rows of each step, epoch after epoch in another order: shape (steps, batch)."""
    generator = np.random.default_rng(seed)
    size = min(batch_size, rows)
    per_epoch = max(rows // size, 1)
    epochs = max(1, math.ceil(400 / per_epoch))
    orders = [generator.permutation(rows)[: per_epoch * size] for _ in range(epochs)]
    return np.concatenate(orders).reshape(-1, size).astype("int32")


def _thinned(values: Any) -> Any:
    if len(values) <= _KEPT:
        return values
    edges = np.linspace(0, len(values), _KEPT + 1).astype(int)
    return [values[a:b].mean() for a, b in itertools.pairwise(edges)]
