"""Steps of Keras and of gradstab compared with NumPy in float64.

    python benchmarks/correctness_table.py [--quick] [--output FILE]

Cases for replicas, bad numbers, loss scaling, duplicate rows, half precision, accumulation,
BatchNorm and uneven batches, each run with plain Keras and with gradstab. The reference of a case
is computed by NumPy in float64 from the definition, with its own optimizers. The comparison covers
the whole change of the weights (which begin at zero): its norm, its relative error ‖update -
reference‖ / ‖reference‖ and the angle between the two.

It exits with 1 unless gradstab is within 1e-6 of the reference in every case (1e-3 for float16
gradients) and the loss scale is right.

`--quick` leaves out four replicas where two show the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from harness.origin import git, origin

import gradstab
from gradstab import optimizers
from gradstab.cli.console import table, write_whole

TOLERANCE = {"float32": 1e-6, "float16": 1e-3}
BATCH, FEATURES, OUTPUTS = 32, 5, 3
MAX_NORM, CLIP_VALUE = 1.0, 0.5
# Powers of two, which float32 holds exactly: 0.999 costs Keras' Adam a relative error of 7e-6.
RATE, BETA_1, BETA_2 = 2.0**-7, 1 - 2.0**-3, 1 - 2.0**-10
EPSILON = 1e-7  # Keras' default in all optimizers
MICRO_BATCHES = 4

Arrays = list[np.ndarray]
Rule = Callable[[Arrays], Arrays]


# The reference: NumPy, float64 ------------------------------------------------------------------


def same(gradients: Arrays) -> Arrays:
    return gradients


def norm(arrays: Arrays) -> float:
    """Return the norm over all entries, with the largest taken out so that nothing overflows."""
    flat = np.abs(np.concatenate([np.ravel(array) for array in arrays]))
    largest = flat.max()
    return float(largest * np.sqrt(np.sum((flat / largest) ** 2))) if largest else 0.0


def clipped_by_value(gradients: Arrays) -> Arrays:
    return [np.clip(gradient, -CLIP_VALUE, CLIP_VALUE) for gradient in gradients]


def clipped_by_norm(gradients: Arrays) -> Arrays:
    return [gradient * min(1.0, MAX_NORM / norm([gradient])) for gradient in gradients]


def clipped_by_global_norm(gradients: Arrays) -> Arrays:
    factor = min(1.0, MAX_NORM / norm(gradients))
    return [gradient * factor for gradient in gradients]


def sgd(weight: np.ndarray, gradients: Iterator[np.ndarray], rate: float) -> np.ndarray:
    for gradient in gradients:
        weight = weight - rate * gradient
    return weight


def adam(weight: np.ndarray, gradients: Iterator[np.ndarray], rate: float) -> np.ndarray:
    first = second = np.zeros_like(weight)
    for step, gradient in enumerate(gradients, 1):
        first = BETA_1 * first + (1 - BETA_1) * gradient
        second = BETA_2 * second + (1 - BETA_2) * gradient**2
        corrected = rate * math.sqrt(1 - BETA_2**step) / (1 - BETA_1**step)
        weight = weight - corrected * first / (np.sqrt(second) + EPSILON)
    return weight


def adagrad(weight: np.ndarray, gradients: Iterator[np.ndarray], rate: float) -> np.ndarray:
    total = np.full_like(weight, 0.1)
    for gradient in gradients:
        total = total + gradient**2
        weight = weight - rate * gradient / np.sqrt(total + EPSILON)
    return weight


def rmsprop(weight: np.ndarray, gradients: Iterator[np.ndarray], rate: float) -> np.ndarray:
    mean = np.zeros_like(weight)
    for gradient in gradients:
        mean = 0.9 * mean + 0.1 * gradient**2
        weight = weight - rate * gradient / np.sqrt(mean + EPSILON)
    return weight


def gradients_of(x: np.ndarray, y: np.ndarray, weights: Arrays) -> Arrays:
    """Return the gradient of the mean squared distance of a linear model, by hand."""
    error = 2 * (x @ weights[0] + weights[1] - y) / len(x)
    return [x.T @ error, error.sum(axis=0)]


def linear_run(steps: Sequence[Sequence[tuple[Any, Any]]], rule: Rule, rate: float) -> Arrays:
    """Return the weights after steps of SGD, each on the mean gradient over its micro-batches."""
    weights = [np.zeros((FEATURES, OUTPUTS)), np.zeros(OUTPUTS)]
    for window in steps:
        each = [gradients_of(x, y, weights) for x, y in window]
        means = [np.mean(parts, axis=0) for parts in zip(*each, strict=True)]
        weights = [w - rate * g for w, g in zip(weights, rule(means), strict=True)]
    return weights


def linear_adam_run(batches: Sequence[tuple[Any, Any]]) -> Arrays:
    """Return the weights of the linear model after steps of Adam."""
    weights = [np.zeros((FEATURES, OUTPUTS)), np.zeros(OUTPUTS)]
    seen: list[Arrays] = []
    for x, y in batches:
        seen.append(gradients_of(x, y, weights))
        weights = [
            adam(np.zeros_like(weight), iter([each[place] for each in seen]), RATE)
            for place, weight in enumerate(weights)
        ]
    return weights


# What is measured -------------------------------------------------------------------------------


@dataclasses.dataclass
class Outcome:
    """What a contender's weights came to, beginning at zero, or the error that it raised."""

    weights: Arrays = dataclasses.field(default_factory=list)
    scale: float | None = None
    raised: Exception | None = None


@dataclasses.dataclass
class Case:
    """One row of the table: the reference, and what both came to."""

    group: str
    name: str
    reference: Arrays
    keras: Outcome
    gradstab: Outcome
    dtype: str = "float32"
    scale: float | None = None

    @property
    def tolerance(self) -> float:
        """Return the relative error that is allowed."""
        return TOLERANCE[self.dtype]

    def as_json(self) -> dict[str, Any]:
        """Return names and numbers."""
        return {
            "group": self.group,
            "case": self.name,
            "tolerance": self.tolerance,
            "reference_norm": norm(self.reference),
            "reference_scale": self.scale,
            "keras": self.measured(self.keras),
            "gradstab": self.measured(self.gradstab),
        }

    def measured(self, outcome: Outcome) -> dict[str, Any]:
        """Compare one contender with the reference."""
        if outcome.raised is not None:
            message = re.sub(r"\x1b\[[0-9;]*m", "", str(outcome.raised)).strip()
            return {"raised": type(outcome.raised).__name__, "message": message, "right": False}
        numbers: dict[str, Any] = {"finite": all(np.isfinite(w).all() for w in outcome.weights)}
        if numbers["finite"]:
            difference = [w - r for w, r in zip(outcome.weights, self.reference, strict=True)]
            numbers["norm"] = norm(outcome.weights)
            numbers["error"] = norm(difference) / norm(self.reference)
            numbers["degrees"] = angle(outcome.weights, self.reference)
        if outcome.scale is not None:
            numbers["scale"] = outcome.scale
        right = numbers["finite"] and numbers["error"] <= self.tolerance
        return {**numbers, "right": bool(right and outcome.scale == self.scale)}


def angle(weights: Arrays, others: Arrays) -> float | None:
    """Return the angle between two updates in degrees, exact for small ones too."""
    length, other_length = norm(weights), norm(others)
    if not length or not other_length:
        return None
    pairs = list(zip(weights, others, strict=True))
    apart = norm([w / length - o / other_length for w, o in pairs])
    along = norm([w / length + o / other_length for w, o in pairs])
    return math.degrees(2 * math.atan2(apart, along))


def as_float64(variables: Sequence[Any]) -> Arrays:
    return [np.array(keras.ops.convert_to_numpy(v), "float64") for v in variables]


# The contenders ---------------------------------------------------------------------------------


@functools.cache
def strategy_of(num_replicas: int) -> Any:
    if num_replicas == 1:
        return tf.distribute.get_strategy()
    # TensorFlow's collective operations take groups of one size only in a process.
    reduction = None if num_replicas == 2 else tf.distribute.ReductionToOneDevice()
    devices = [f"/cpu:{place}" for place in range(num_replicas)]
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=reduction)


class Training:
    """A linear model, and a compiled step that splits a whole batch over the replicas.

    The loss of each is the mean over its share divided by the number of replicas, as in `fit`.
    """

    def __init__(
        self, optimizer: Callable[[], Any], num_replicas: int = 1, dtype: str = "float32"
    ) -> None:
        self.strategy, self.num_replicas = strategy_of(num_replicas), num_replicas
        with self.strategy.scope():
            self.model = linear_model(dtype)
            self.optimizer = optimizer()
            self.optimizer.build(self.model.trainable_variables)
        self.step = tf.function(self._step, autograph=False)
        self._start = [keras.ops.convert_to_numpy(v) for v in self._all_variables()]

    def _all_variables(self) -> list[Any]:
        return [*self.model.variables, *self.optimizer.variables]

    def _step(self, x: Any, y: Any) -> None:
        size = x.shape[0] // self.num_replicas

        def on_replica() -> None:
            context = tf.distribute.get_replica_context()
            place = int(tf.get_static_value(context.replica_id_in_sync_group) or 0)
            mine = slice(place * size, (place + 1) * size)
            with tf.GradientTape() as tape:
                outputs = tf.cast(self.model(x[mine], training=True), "float32")
                loss = tf.reduce_sum((outputs - y[mine]) ** 2) / size / self.num_replicas
                loss = self.optimizer.scale_loss(loss)
            variables = self.model.trainable_variables
            self.optimizer.apply(tape.gradient(loss, variables), variables)

        self.strategy.run(on_replica)

    def run(self, batches: Sequence[tuple[Any, Any]], may_raise: bool = False) -> Outcome:
        """Train anew, from zero, on these batches."""
        for variable, value in zip(self._all_variables(), self._start, strict=True):
            variable.assign(value)

        def train() -> None:
            for x, y in batches:
                self.step(tf.constant(x, "float32"), tf.constant(y, "float32"))

        return outcome_of(self.model, train, self.optimizer, may_raise)


def outcome_of(
    model: Any, train: Callable[[], None], optimizer: Any = None, may_raise: bool = False
) -> Outcome:
    """Train, and return what the weights came to; an error counts only where one is awaited."""
    try:
        train()
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        if not may_raise:
            raise
        return Outcome(raised=error)
    scale = getattr(optimizer, "dynamic_scale", None)
    weights = as_float64(model.trainable_variables)
    return Outcome(weights, None if scale is None else float(as_float64([scale])[0]))


def linear_model(dtype: str = "float32") -> keras.Model:
    dense = keras.layers.Dense(OUTPUTS, kernel_initializer="zeros", dtype=dtype)
    return keras.Sequential([keras.layers.Input((FEATURES,)), dense])


def apply(optimizer: Any, steps: Sequence[Sequence[Any]], shapes: Sequence[Any]) -> Outcome:
    """Return the weights after steps with given gradients, in the gradients' dtype."""
    variables = [keras.Variable(tf.zeros(shape, steps[0][0].dtype)) for shape in shapes]
    optimizer.build(variables)
    step = tf.function(lambda *gradients: optimizer.apply(list(gradients), variables))
    for gradients in steps:
        step(*gradients)
    return Outcome(as_float64(variables))


# The cases --------------------------------------------------------------------------------------

CLIPS: dict[str, tuple[Rule, dict[str, float], Callable[[Any], Any]]] = {
    "value": (
        clipped_by_value,
        {"clipvalue": CLIP_VALUE},
        lambda inner: optimizers.clip_by_value(inner, CLIP_VALUE),
    ),
    "norm": (
        clipped_by_norm,
        {"clipnorm": MAX_NORM},
        lambda inner: optimizers.clip_by_norm(inner, MAX_NORM),
    ),
    "global norm": (
        clipped_by_global_norm,
        {"global_clipnorm": MAX_NORM},
        lambda inner: optimizers.clip_by_global_norm(inner, MAX_NORM),
    ),
}


def draw_batches(count: int, size: int = BATCH, seed: int = 0) -> list[tuple[Any, Any]]:
    """Return batches whose examples differ in size, so that the shares of replicas do too."""
    draw = np.random.default_rng(seed)
    batches = []
    for _ in range(count):
        x = draw.normal(size=(size, FEATURES)) * np.exp(draw.normal(size=(size, 1)))
        y = draw.normal(size=(size, OUTPUTS)) * 3 + 1
        # What both get is float32; the reference begins with the same numbers.
        batches.append(
            (x.astype("float32").astype("float64"), y.astype("float32").astype("float64"))
        )
    return batches


def spoiled(batch: tuple[Any, Any], rows: int | slice, value: float = np.nan) -> tuple[Any, Any]:
    """Return the batch with one bad example, or some."""
    x = batch[0].copy()
    x[rows, 0] = value
    return x, batch[1]


def clips_under_replicas(quick: bool) -> Iterator[Case]:
    """One batch, clipped: the sum over the replicas is what has to be clipped."""
    (batch,) = draw_batches(1)
    for name, (rule, of_keras, of_gradstab) in CLIPS.items():
        for replicas in (1, 2) if quick else (1, 2, 4):
            yield Case(
                "clip under replicas",
                f"{name}, {replicas} replica{'s' * (replicas > 1)}",
                linear_run([[batch]], rule, rate=1.0),
                Training(lambda: keras.optimizers.SGD(1.0, **of_keras), replicas).run([batch]),  # noqa: B023
                Training(lambda: of_gradstab(keras.optimizers.SGD(1.0)), replicas).run([batch]),  # noqa: B023
            )


def overflow_on_one_replica(quick: bool) -> Iterator[Case]:
    """A good step, one that overflows on one replica, a good one: the second is skipped on all.

    The loss of the second is finite, and its gradient times the scale is not.
    """
    scale = 2.0**15
    good, bad, last = draw_batches(3)
    reference = linear_adam_run([good, last])
    for replicas in (2,) if quick else (2, 4):
        plain = Training(lambda: loss_scaled(scale), replicas)
        ours = Training(lambda: loss_scaled(scale, gradstab.stabilize, clip=None), replicas)
        for place in range(replicas):
            batches = [good, spoiled(bad, place * BATCH // replicas, 1e19), last]
            yield Case(
                "overflow on one replica",
                f"on replica {place + 1} of {replicas}, Adam",
                reference,
                plain.run(batches),
                ours.run(batches),
                scale=scale / 2,
            )


def loss_scale_bounds(quick: bool) -> Iterator[Case]:
    """Overflows in a row, then one good step; the scale must stay where float16 can use it."""
    good, bad = draw_batches(2)
    # Their loss is finite: one that is not leaves the scale alone.
    bad = spoiled(bad, slice(None), 6e4)
    reference = linear_adam_run([good])
    plain = Training(lambda: loss_scaled(2.0**15), dtype="mixed_float16")
    ours = Training(
        lambda: loss_scaled(2.0**15, gradstab.stabilize, clip=None), dtype="mixed_float16"
    )
    for overflows in (40, 200):
        batches = [bad] * overflows + [good]
        yield Case(
            "loss scale bounds",
            f"a good step after {overflows} overflows, float16",
            reference,
            plain.run(batches),
            ours.run(batches),
            dtype="float16",
            scale=1.0,
        )


def loss_scaled(scale: float, wrap: Callable[..., Any] | None = None, **arguments: Any) -> Any:
    inner = make_adam()
    if wrap is not None:
        inner = wrap(inner, **arguments)
    return keras.optimizers.LossScaleOptimizer(inner, initial_scale=scale)


def make_adam() -> Any:
    return keras.optimizers.Adam(RATE, beta_1=BETA_1, beta_2=BETA_2)


def duplicate_rows(quick: bool) -> Iterator[Case]:
    """Three steps with sparse gradients in which rows occur twice and three times."""
    shape = (6, 3)
    draw = np.random.default_rng(1)
    steps = [
        (np.array(rows), draw.normal(size=(len(rows), 3)).astype("float32"))
        for rows in ([1, 4, 1, 0, 4, 1], [2, 2, 5], [4, 0, 4, 2])
    ]
    dense = []
    for rows, values in steps:
        dense.append(np.zeros(shape))
        np.add.at(dense[-1], rows, values.astype("float64"))
    sparse = [
        [tf.IndexedSlices(tf.constant(values), tf.constant(rows), tf.constant(shape))]
        for rows, values in steps
    ]
    pairs: list[tuple[str, Any, Callable[[], Any]]] = [
        ("Adam", adam, make_adam),
        ("Adagrad", adagrad, lambda: keras.optimizers.Adagrad(RATE)),
        ("RMSprop", rmsprop, lambda: keras.optimizers.RMSprop(RATE)),
        ("SGD", sgd, lambda: keras.optimizers.SGD(RATE)),
    ]
    for name, reference, make in pairs:
        yield Case(
            "duplicate sparse rows",
            name,
            [reference(np.zeros(shape), iter(dense), RATE)],
            apply(make(), sparse, [shape]),
            apply(gradstab.stabilize(make(), clip=None), sparse, [shape]),
        )


def extreme_gradients(quick: bool) -> Iterator[Case]:
    """Gradients whose squares overflow in their own dtype, clipped at 1."""
    shapes = [(40, 10), (10,)]
    draw = np.random.default_rng(2)
    drawn = [draw.normal(size=shape) for shape in shapes]
    kinds = [
        ("float16, norm 608", "float16", 608 / norm(drawn)),
        ("float32, entries of 1e20", "float32", 1e20),
    ]
    for label, dtype, factor in kinds:
        gradients = [(array * factor).astype(dtype) for array in drawn]
        wide = [gradient.astype("float64") for gradient in gradients]
        for name in ("norm", "global norm"):
            rule, of_keras, of_gradstab = CLIPS[name]
            step = [[tf.constant(gradient) for gradient in gradients]]
            yield Case(
                "extreme gradients",
                f"{label}, clip by {name}",
                [-gradient for gradient in rule(wide)],
                apply(keras.optimizers.SGD(1.0, **of_keras), step, shapes),
                apply(of_gradstab(keras.optimizers.SGD(1.0)), step, shapes),
                dtype=dtype,
            )


def accumulation(quick: bool) -> Iterator[Case]:
    """Windows of four micro-batches: the mean over the window is what has to be clipped."""
    batches = draw_batches(3 * MICRO_BATCHES)
    windows = [
        batches[first : first + MICRO_BATCHES] for first in range(0, len(batches), MICRO_BATCHES)
    ]
    broken = list(batches)
    broken[MICRO_BATCHES + 1] = spoiled(broken[MICRO_BATCHES + 1], 3)

    def inner(**clip: float) -> Any:
        return keras.optimizers.SGD(0.5, gradient_accumulation_steps=MICRO_BATCHES, **clip)

    def of_keras() -> Any:
        return inner(global_clipnorm=MAX_NORM)

    def of_gradstab() -> Any:
        return gradstab.stabilize(inner(), clip=MAX_NORM)

    for replicas in (1, 2):
        plain, ours = Training(of_keras, replicas), Training(of_gradstab, replicas)
        where = "one device" if replicas == 1 else f"{replicas} replicas"
        for name, given, kept in (
            ("clip of the mean", batches, windows),
            ("a NaN micro-batch skips its window", broken, [windows[0], windows[2]]),
        ):
            yield Case(
                "accumulation over 4",
                f"{name}, {where}",
                linear_run(kept, clipped_by_global_norm, rate=0.5),
                plain.run(given, may_raise=replicas > 1),
                ours.run(given),
            )


def batch_norm(quick: bool) -> Iterator[Case]:
    """`fit` on four batches of which the third is NaN; the others make the moving statistics."""
    batches = draw_batches(4)
    batches[2] = spoiled(batches[2], 3)
    mean, variance = np.zeros(FEATURES), np.ones(FEATURES)
    for x, _ in (batches[0], batches[1], batches[3]):
        mean = 0.99 * mean + 0.01 * x.mean(axis=0)
        variance = 0.99 * variance + 0.01 * x.var(axis=0)
    x, y = (np.concatenate(parts).astype("float32") for parts in zip(*batches, strict=True))

    def fitted(optimizer: Any, callbacks: list[Any]) -> Outcome:
        layer = keras.layers.BatchNormalization()
        model = keras.Sequential([keras.layers.Input((FEATURES,)), layer, linear_model().layers[0]])
        model.compile(optimizer, "mse")
        model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=callbacks)
        return Outcome(as_float64([layer.moving_mean, layer.moving_variance]))

    yield Case(
        "BatchNorm after a NaN batch",
        "moving statistics, Adam in `fit`",
        [mean, variance],
        fitted(make_adam(), []),
        fitted(gradstab.stabilize(make_adam()), [gradstab.callbacks.GradientMonitor()]),
    )


def uneven_batches(quick: bool) -> Iterator[Case]:
    """Batches that 2 replicas can't share evenly: every example has to count the same."""
    rate, epochs = 2.0**-7, 3

    def plain() -> Any:
        return keras.optimizers.SGD(rate)

    def fit(model: Any, data: Any, **arguments: Any) -> None:
        model.fit(data, shuffle=False, **arguments)

    for name, sizes in (
        ("two batches of 33", (33, 33)),
        ("batches of 32, the last of 11", (32, 32, 11)),
    ):
        batches = [draw_batches(1, size, seed)[0] for seed, size in enumerate(sizes)]

        def trained(make: Callable[[], Any], train: Callable[..., Any], may_raise: bool) -> Outcome:
            x, y = (np.concatenate(parts).astype("float32") for parts in zip(*batches, strict=True))  # noqa: B023
            with strategy_of(2).scope():
                model = linear_model()
                model.compile(make(), sum_of_squares)
            data = tf.data.Dataset.from_tensor_slices((x, y)).batch(sizes[0])  # noqa: B023
            return outcome_of(
                model, lambda: train(model, data, epochs=epochs, verbose=0), may_raise=may_raise
            )

        yield Case(
            "`fit`, `training.train`",
            f"{name}, 2 replicas",
            linear_run([[batch] for batch in batches * epochs], same, rate),
            trained(plain, fit, may_raise=True),
            trained(lambda: gradstab.stabilize(plain(), clip=None), gradstab.training.train, False),
        )


def sum_of_squares(true: Any, got: Any) -> Any:
    """Return a loss per example, whose mean Keras takes: what `gradients_of` differentiates."""
    return tf.reduce_sum((got - true) ** 2, axis=-1)


GROUPS = (
    clips_under_replicas,
    overflow_on_one_replica,
    loss_scale_bounds,
    duplicate_rows,
    extreme_gradients,
    accumulation,
    batch_norm,
    uneven_batches,
)


# The table --------------------------------------------------------------------------------------


def shown(numbers: dict[str, Any]) -> str:
    """Return one cell: what was measured, in words as short as can be."""
    if "raised" in numbers:
        return f"raises {numbers['raised']}"
    parts = ["not finite"]
    if numbers["finite"]:
        parts = [f"norm {numbers['norm']:.4g}", f"error {numbers['error']:.1e}"]
        if numbers["degrees"] is not None:
            parts.append(f"{numbers['degrees']:.1f}°")
    if "scale" in numbers:
        parts.append(f"scale {numbers['scale']:.5g}")
    return ", ".join(parts)


def rows_of(cases: Sequence[dict[str, Any]]) -> list[list[str]]:
    rows, last = [], None
    for case in cases:
        reference = f"norm {case['reference_norm']:.4g}"
        if case["reference_scale"] is not None:
            reference += f", scale {case['reference_scale']:.5g}"
        verdict = "within" if case["gradstab"]["right"] else "FAILS"
        rows.append(
            [
                "" if case["group"] == last else case["group"],
                case["case"],
                reference,
                shown(case["keras"]),
                "within" if case["keras"]["right"] else "wrong",
                shown(case["gradstab"]),
                f"{verdict} {case['tolerance']:.0e}",
            ]
        )
        last = case["group"]
    return rows


def main() -> int:
    arguments = _parse()
    started = time.perf_counter()
    cases = []
    for group in GROUPS:
        for case in group(arguments.quick):
            cases.append(case.as_json())
    header = ("", "case", "reference", "Keras", "", "gradstab", "")
    print(table(header, rows_of(cases), left=len(header)))
    right = {name: sum(case[name]["right"] for case in cases) for name in ("keras", "gradstab")}
    seconds = time.perf_counter() - started
    print(f"\nRight: Keras {right['keras']} of {len(cases)}, gradstab {right['gradstab']} of "
          f"{len(cases)}. {seconds:.0f} s")  # fmt: skip
    content = {
        "benchmark": "correctness_table",
        "quick": arguments.quick,
        **origin(git("rev-parse", "HEAD")),
        "right": right,
        "cases": cases,
    }
    if arguments.output is not None:
        write_whole(arguments.output, json.dumps(content, indent=1, allow_nan=False))
        print(f"Written to {arguments.output}")
    return 0 if right["gradstab"] == len(cases) else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="leave four replicas out")
    parser.add_argument("--output", type=Path, help="write the results as JSON to this file")
    return parser.parse_args()


def _split_cpu(count: int) -> None:
    """Split the CPU into as many devices, before TensorFlow has looked at it."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * count
    )


if __name__ == "__main__":
    _split_cpu(4)
    tf.get_logger().setLevel("ERROR")  # It warns of steps that are compiled once each.
    sys.exit(main())
