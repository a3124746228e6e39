"""A snapshot holds all that a step changes, and is not changed by the steps after it."""

import common_checks as checks
import keras
import numpy as np
import pytest

import gradstab
from gradstab.optimizers.watching.find import bind, optimizers_of
from gradstab.recovery.snapshots import Ring, Snapshot, State

X = np.random.default_rng(0).normal(size=(6, 16, 5)).astype("float32")
Y = X.sum(-1, keepdims=True)


def everything(model):
    """The bytes of all that a step changes: seeds are variables of the model."""
    optimizer = model.optimizer
    ours = getattr(optimizer, "inner_optimizer", optimizer)
    telemetry = getattr(getattr(ours, "telemetry", None), "variables", None)
    telemetry = telemetry or getattr(getattr(optimizer, "telemetry", None), "variables", ())
    told = {id(each) for each in telemetry}
    variables = (*model.variables, *model.metrics_variables, *optimizer.variables)
    variables = [v for v in variables if id(v) not in told]
    return [np.asarray(variable).tobytes() for variable in variables]


def make_model(optimizer, **arguments):
    keras.utils.set_random_seed(3)
    layers = [keras.layers.Dense(8), keras.layers.BatchNormalization(), keras.layers.ReLU()]
    layers += [keras.layers.Dropout(0.3, seed=1), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((5,)), *layers])
    model.compile(optimizer, "mse", metrics=["mae"], **arguments)
    model.optimizer.build(model.trainable_variables)
    bind(model)
    return model


def adam(**arguments):
    return keras.optimizers.Adam(0.01, **arguments)


OPTIMIZERS = {
    "Adam": adam,
    "stabilized": lambda: gradstab.stabilize(adam()),
    "averages": lambda: adam(use_ema=True, ema_momentum=0.9),
    "accumulation": lambda: adam(gradient_accumulation_steps=3),
    "stabilized accumulation": lambda: gradstab.stabilize(adam(gradient_accumulation_steps=3)),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(adam(), dynamic_growth_steps=2),
    "schedule": lambda: keras.optimizers.SGD(
        keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.9), momentum=0.9
    ),
}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_put_back_goes_on_bit_for_bit(name, jit_compile):
    if jit_compile and name not in ("Adam", "stabilized"):
        pytest.skip("two optimizers tell whether XLA writes into buffers that are shared")
    model = make_model(OPTIMIZERS[name](), jit_compile=jit_compile)

    def steps():
        for x, y in zip(X[2:], Y[2:], strict=True):
            model.train_on_batch(x, y)

    for x, y in zip(X[:2], Y[:2], strict=True):
        model.train_on_batch(x, y)
    state = State(model, optimizers_of(model))
    values, _ = state.read()
    before = everything(model)
    steps()
    after = everything(model)
    assert after != before
    state.put_back(values)
    bind(model)
    assert everything(model) == before
    steps()
    assert everything(model) == after


def test_rows_that_are_written_in_place_do_not_reach_the_copy():
    tokens = keras.Input((3,), dtype="int32")
    model = keras.Sequential([tokens, keras.layers.Embedding(50, 4), keras.layers.Flatten()])
    model.compile(keras.optimizers.SGD(1.0), "mse")
    model.optimizer.build(model.trainable_variables)
    state = State(model, optimizers_of(model))
    values, _ = state.read()
    before = everything(model)
    for _ in range(3):
        model.train_on_batch(np.ones((2, 3)), np.ones((2, 12)))
    assert everything(model) != before
    state.put_back(values)
    assert everything(model) == before


def test_telemetry_goes_on_counting():
    model = make_model(gradstab.stabilize(adam()))
    state = State(model, optimizers_of(model))
    values, _ = state.read()
    model.train_on_batch(X[0], Y[0])
    state.put_back(values)
    assert model.optimizer.telemetry.read().cursor == 1
    assert int(model.optimizer.iterations) == 0


@pytest.mark.slow
def test_replicas_get_their_own_back():
    with checks.mirrored(2).scope():
        model = make_model(gradstab.stabilize(adam()))
    state = State(model, optimizers_of(model))
    model.fit(X[0], Y[0], batch_size=8, verbose=0)
    statistic = model.layers[1].moving_mean.value
    before = [each.numpy().tobytes() for each in statistic.values]
    assert before[0] != before[1]
    values, _ = state.read()
    model.fit(X[1], Y[1], batch_size=8, verbose=0)
    state.put_back(values)
    assert [each.numpy().tobytes() for each in statistic.values] == before


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_entry_that_is_not_finite_shows_in_the_norm(value):
    model = make_model(adam())
    state = State(model, optimizers_of(model))
    assert np.isfinite(state.read()[1]).all()
    kernel = np.asarray(model.layers[0].kernel).copy()
    kernel[3, 2] = value
    model.layers[0].kernel.assign(kernel)
    bad = np.flatnonzero(~np.isfinite(state.read()[1]))
    assert [state.judged[place].path for place in bad] == [model.layers[0].kernel.path]


def test_the_oldest_makes_room_and_what_was_taken_back_is_gone():
    ring = Ring(copies=3)
    first, *others = [Snapshot(step, 0, ()) for step in (0, 10, 20, 30, 40)]
    ring.begin(first)
    assert ring.get(0) is None
    for each in others:
        ring.add(each)
    assert [ring.get(back) for back in (0, 1, 2, 3)] == [*others[:0:-1], None]
    ring.drop_after(30)
    assert ring.get(0) is others[2]
    assert ring.first is first
