"""What holds for every public schedule."""

import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab import schedules
from gradstab.schedules import (
    Adjustable,
    ExponentialWarmup,
    InverseSquareRoot,
    Join,
    LinearDecay,
    LinearWarmup,
    Noam,
    OneCycle,
    Scale,
    UntunedWarmup,
    WarmupStableDecay,
)

BILLION = 1_000_000_001  # one beyond a number that float32 holds: it rounds to 1,000,000,000


def falling():
    """1 at step 0, down by 1/64 each step, 0 from step 64 on."""
    return keras.optimizers.schedules.PolynomialDecay(1.0, 64, end_learning_rate=0.0)


def falling_late(step):
    return (64 - np.clip(step - BILLION, 0, 64)) / 64


def approach(start, end, done):
    """Half a cosine from one rate to another."""
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


def stable(s):
    if s < BILLION:
        return 0.1 + 0.4 * (s + 1) / (BILLION + 1)
    done = min(max(s - BILLION - 10, 0), 50) / 50
    return 0.2 + 0.3 * (1 - math.sqrt(done))


def cycle(s):
    """0.02 to 0.5 in 30 steps, down in 30, out to 0.002 at 100, with cosines."""
    if s < 30:
        return approach(0.02, 0.5, s / 30)
    if s < 60:
        return approach(0.5, 0.02, (s - 30) / 30)
    return approach(0.02, 0.002, min((s - 60) / 40, 1))


def late_cycle(s):
    half = BILLION // 2
    up, down = min(s / half, 1), min(max(s - half, 0) / (BILLION - half), 1)
    return 0.02 + 0.48 * up if s < half else 0.5 + (0.002 - 0.5) * down


# Each with its closed form, evaluated on Python integers.
CASES = {
    "exponential": (
        lambda: ExponentialWarmup(falling(), 7),
        lambda s: max(1 - s / 64, 0) * (1 - math.exp(-(s + 1) / 7)),
    ),
    "slow exponential": (
        lambda: ExponentialWarmup(0.5, 1e9),
        lambda s: -0.5 * math.expm1(-(s + 1) / 1e9),
    ),
    "untuned": (
        lambda: UntunedWarmup(falling(), 0.9),
        lambda s: (s + 1) / 20 if s < 19 else max(1 - (s - 19) / 64, 0),
    ),
    "untuned exponential": (
        lambda: UntunedWarmup(0.5, 0.99, form="exponential"),
        lambda s: 0.5 * -math.expm1(-(s + 1) / 100),
    ),
    "stable": (lambda: WarmupStableDecay(0.5, BILLION, 10, 50, 0.1, 0.2, "1-sqrt"), stable),
    "root": (
        lambda: InverseSquareRoot(0.5, 10),
        lambda s: 0.5 * min((s + 1) / 10, math.sqrt(10 / (s + 1))),
    ),
    "late root": (
        lambda: InverseSquareRoot(0.5, BILLION),
        lambda s: 0.5 * min((s + 1) / BILLION, math.sqrt(BILLION / (s + 1))),
    ),
    "noam": (
        lambda: Noam(512, 4000),
        lambda s: 512**-0.5 * min((s + 1) ** -0.5, (s + 1) * 4000**-1.5),
    ),
    "cycle": (lambda: OneCycle(0.5, 100, 0.3, 25.0, 10.0, "cosine", True), cycle),
    "late cycle": (lambda: OneCycle(0.5, BILLION, 0.5, 25.0, 10.0, "linear"), late_cycle),
    "line": (
        lambda: LinearDecay(0.5, 100, 0.1),
        lambda s: 0.1 + 0.4 * max(100 - s, 0) / 100,
    ),
    "late line": (
        lambda: LinearDecay(0.5, BILLION),
        lambda s: 0.5 * max(BILLION - s, 0) / BILLION,
    ),
    "scale": (
        lambda: Scale(falling(), 0.5, gradient_accumulation_steps=3),
        lambda s: 0.5 * max(1 - s // 3 / 64, 0),
    ),
    "late scale": (
        lambda: Scale(Join([0.25, falling()], [BILLION]), 2, gradient_accumulation_steps=2),
        lambda s: 0.5 if s // 2 < BILLION else 2 * falling_late(s // 2),
    ),
    "warmup": (
        lambda: LinearWarmup(falling(), 10, 0.5),
        lambda s: 0.5 + 0.5 * (s + 1) / 11 if s < 10 else (64 - min(s - 10, 64)) / 64,
    ),
    "late warmup": (
        lambda: LinearWarmup(falling(), BILLION),
        lambda s: (s + 1) / (BILLION + 1) if s < BILLION else falling_late(s),
    ),
    "late join": (
        lambda: Join([0.25, falling()], [BILLION]),
        lambda s: 0.25 if s < BILLION else falling_late(s),
    ),
    "adjustable": (
        lambda: Adjustable(Join([0.25, LinearWarmup(falling(), 0)], [BILLION]), factor=0.5),
        lambda s: 0.125 if s < BILLION else 0.5 * falling_late(s),
    ),
}
STEPS = [0, 1, 9, 10, 11, 59, 60, 99, 100, 3999, *range(BILLION - 2, BILLION + 3)]
STEPS += [BILLION + 10, BILLION + 11, BILLION + 37, 2 * BILLION, 2 * BILLION + 1, 2**31 - 1]
KINDS = {
    "int": int,
    "numpy int32": np.int32,
    "numpy int64": np.int64,
    "int32": lambda s: tf.constant(s, tf.int32),
    "int64": lambda s: tf.constant(s, tf.int64),
    "variable": lambda s: keras.Variable(s, dtype="int64", trainable=False),
}


@pytest.fixture(params=list(CASES))
def case(request):
    return CASES[request.param]


def test_every_public_schedule_is_covered():
    assert {type(make()).__name__ for make, _ in CASES.values()} == set(schedules.__all__)


@pytest.mark.parametrize("kind", list(KINDS))
def test_closed_form_for_every_kind_of_step(case, kind):
    make, closed_form = case
    schedule = make()
    for step in STEPS:
        rate = schedule(KINDS[kind](step))
        assert rate.dtype == tf.float32
        assert float(rate) == pytest.approx(closed_form(step), rel=1e-6)


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("dtype", [tf.int32, tf.int64], ids=["int32", "int64"])
def test_graph_and_xla_agree_with_the_closed_form(case, jit_compile, dtype):
    make, closed_form = case
    compiled = tf.function(make(), jit_compile=jit_compile)
    for step in STEPS:
        rate = float(compiled(tf.constant(step, dtype)))
        assert rate == pytest.approx(closed_form(step), rel=1e-6)
    assert compiled.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_no_double_precision_in_the_graph(case, jit_compile):
    compiled = tf.function(case[0](), jit_compile=jit_compile)
    graph = compiled.get_concrete_function(tf.TensorSpec((), tf.int64)).graph
    dtypes = {tensor.dtype for operation in graph.get_operations() for tensor in operation.outputs}
    assert tf.float64 not in dtypes


def test_steps_beyond_int32_and_arrays_of_steps(case):
    make, closed_form = case
    schedule = make()
    assert float(schedule(3 * BILLION)) == pytest.approx(closed_form(3 * BILLION), rel=1e-6)
    rates = schedule(np.array(STEPS))
    np.testing.assert_allclose(rates, [closed_form(step) for step in STEPS], rtol=1e-6)


def test_config_round_trip(case):
    schedule = case[0]()
    config = keras.optimizers.schedules.serialize(schedule)
    assert config["registered_name"] == f"gradstab>{type(schedule).__name__}"
    restored = keras.optimizers.schedules.deserialize(json.loads(json.dumps(config)))

    assert type(restored) is type(schedule)
    assert repr(restored) == repr(schedule)
    assert restored.get_config() == schedule.get_config()
    assert set(schedule.get_config()) <= set(dir(schedule))
    for step in STEPS:
        assert float(restored(step)) == float(schedule(step))


def test_repr_shows_the_chain():
    join = Join([LinearWarmup(falling(), 10), 0.25], [100])
    assert repr(Adjustable(join, factor=0.1)) == (
        "Adjustable(Join([LinearWarmup(PolynomialDecay(...), warmup_steps=10, "
        "initial_learning_rate=0.0), 0.25], boundaries=[100]), factor=0.1)"
    )


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_a_fit_steps_at_the_scheduled_rate(jit_compile):
    schedule = Adjustable(Join([LinearWarmup(falling(), 3), 0.25], [5]), factor=0.5)
    # A constant gradient of 1 makes each step of Adam as long as the rate, but for
    # the rounding of its bias correction.
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(
        keras.optimizers.Adam(schedule),
        loss=lambda y_true, y_pred: keras.ops.mean(y_pred),
        jit_compile=jit_compile,
    )
    weights = [model.get_weights()[0].item()]
    keep = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: weights.append(model.get_weights()[0].item())
    )
    model.fit(np.ones((8, 1)), np.ones((8, 1)), batch_size=1, callbacks=[keep], verbose=0)

    expected = 0.5 * np.array([1 / 4, 2 / 4, 3 / 4, 1, 63 / 64, 0.25, 0.25, 0.25])
    np.testing.assert_allclose(-np.diff(weights), expected, rtol=1e-4)
    assert model.optimizer.iterations.numpy() == 8
