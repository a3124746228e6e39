"""The step without a condition round it: the same numbers, and a skip that moves nothing."""

import common_checks as checks
import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab import optimizers, stabilize
from gradstab.optimizers.step import applying, gating
from gradstab.optimizers.telemetry.sampling import Sampler

OPTIMIZERS = {
    "SGD": lambda: keras.optimizers.SGD(0.1),
    "SGD with momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "SGD by Nesterov": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "Adam": lambda: keras.optimizers.Adam(0.1),
    "AMSGrad": lambda: keras.optimizers.Adam(0.1, amsgrad=True),
    "AdamW without decay": lambda: keras.optimizers.AdamW(0.1, weight_decay=0),
    "RMSprop": lambda: keras.optimizers.RMSprop(0.1, momentum=0.5, centered=True),
    "Adagrad": lambda: keras.optimizers.Adagrad(0.1),
    "Adadelta": lambda: keras.optimizers.Adadelta(0.1),
    "Adamax": lambda: keras.optimizers.Adamax(0.1),
    "Nadam": lambda: keras.optimizers.Nadam(0.1),
    "Ftrl": lambda: keras.optimizers.Ftrl(0.1, l2_regularization_strength=0.01),
    "Adafactor": lambda: keras.optimizers.Adafactor(0.1),
    "Lion": lambda: keras.optimizers.Lion(0.01),
    "Lamb": lambda: keras.optimizers.Lamb(0.1),
    "AdamW": lambda: keras.optimizers.AdamW(0.1),
    "SGD that decays": lambda: keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.1),
    "ClippyAdagrad": lambda: optimizers.ClippyAdagrad(0.1),
    "SPAM": lambda: optimizers.SPAM(0.1, reset_steps=2, warmup_steps=1),
    "StableAdamW": lambda: optimizers.StableAdamW(0.1),
    "scheduled": lambda: keras.optimizers.Adam(
        keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
    ),
}


def _run(make, batches, gate, monkeypatch, clip=1.0, xla=False):
    """Take steps in a graph; return the state after each, and whether the gate was used."""
    used = []

    def gated(*arguments, **more):
        used.append(1)
        return original(*arguments, **more)

    original = gating.gated
    with monkeypatch.context() as patch:
        patch.setattr(applying, "gated", gated)
        if not gate:
            patch.setattr(applying, "can_gate", lambda *arguments, **_: False)
        weights = [
            keras.Variable(np.array([0.5, -0.0, 0.0, -2.0], "float32")),
            keras.Variable(np.full((2, 2), 0.3, "float32")),
        ]
        optimizer = stabilize(make(), clip=clip)
        optimizer.build(weights)
        apply = tf.function(lambda grads: optimizer.apply(grads, weights), jit_compile=xla)
        states = []
        for batch in batches:
            apply([tf.constant(batch, "float32"), tf.constant(batch, "float32", (2, 2))])
            states.append(checks.contents([*weights, *checks.lasting_state(optimizer)]))
    return states, bool(used), optimizer


GOOD = [[0.3, -0.0, 0.2, 0.1], [3.0, 4.0, 0.0, -5.0], [0.0, 0.0, 0.0, 0.0], [-0.1, 0.2, 0.0, 1.0]]
BAD = [[np.nan, 0, 0, 0], [np.inf, 0, 1, 0], [3e38, 3e38, 0, 0]]


@pytest.fixture
def arithmetic_as_written():
    """Keep Grappler from rewriting arithmetic, which it does outside of branches only."""
    options = tf.config.optimizer
    before = options.get_experimental_options().get("arithmetic_optimization", True)
    options.set_experimental_options({"arithmetic_optimization": False})
    yield
    options.set_experimental_options({"arithmetic_optimization": before})


@pytest.mark.quick_cases(1)
@pytest.mark.usefixtures("arithmetic_as_written")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_used_and_gives_the_numbers_of_a_condition(name, monkeypatch):
    batches = [GOOD[0], BAD[0], GOOD[1], GOOD[2], BAD[1], BAD[2], GOOD[3]]
    gated, used, optimizer = _run(OPTIMIZERS[name], batches, True, monkeypatch)
    plain, unused, _ = _run(OPTIMIZERS[name], batches, False, monkeypatch)
    assert (used, unused) == (True, False)
    for one, other in zip(gated, plain, strict=True):
        assert list(one.values()) == list(other.values())  # byte by byte
    assert optimizer.telemetry.peek().skipped.tolist() == [batch in BAD for batch in batches]


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("xla", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_skip_moves_no_byte(name, xla, monkeypatch):
    states, used, _ = _run(OPTIMIZERS[name], [GOOD[0], *BAD], True, monkeypatch, xla=xla)
    assert used
    for state in states[1:]:
        assert not checks.differences(states[0], state)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", ["SGD by Nesterov", "AMSGrad", "RMSprop"])
def test_xla_gives_the_numbers_of_a_plain_graph(name, monkeypatch):
    batches = [GOOD[0], BAD[0], GOOD[1], GOOD[2], BAD[2], GOOD[3]]
    compiled, used, _ = _run(OPTIMIZERS[name], batches, True, monkeypatch, xla=True)
    plain, *_ = _run(OPTIMIZERS[name], batches, True, monkeypatch)
    assert used
    for one, other in zip(compiled, plain, strict=True):
        for pair in zip(one.values(), other.values(), strict=True):
            numbers = [np.frombuffer(each, "float32") for each in pair]
            np.testing.assert_allclose(*numbers, rtol=2e-6, atol=1e-7)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("xla", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_is_sampled_tells_what_moved_and_a_refused_one_nothing(name, xla):
    weights = [keras.Variable([0.5, -0.0, 0.0, -2.0]), keras.Variable(np.full((2, 2), 0.3))]
    optimizer = stabilize(OPTIMIZERS[name](), clip=1.0)
    optimizer.build(weights)
    sampler = Sampler(1)
    optimizer.telemetry.prepare(sampler)

    @tf.function(jit_compile=xla)
    def apply(gradients):
        with optimizer.telemetry.sampling(sampler):
            optimizer.apply(gradients, weights)

    moved, predicted = [], []
    for batch in (GOOD[0], BAD[0], GOOD[1], BAD[1]):
        gradients = [np.array(batch, "float32"), np.array(batch, "float32").reshape(2, 2)]
        before = [weight.numpy() for weight in weights]
        apply([tf.constant(gradient) for gradient in gradients])
        updates = [w.numpy() - old for w, old in zip(weights, before, strict=True)]
        moved.append([np.linalg.norm(update) for update in updates])
        is_good = batch not in BAD
        pairs = zip(gradients, updates, strict=True)
        predicted.append([np.vdot(g, u) if is_good else 0.0 for g, u in pairs])
    samples = optimizer.telemetry.peek(sampler=sampler).samples
    assert samples.steps.tolist() == [1, 2, 3, 4]
    np.testing.assert_array_equal(samples.variables["update_norm"][[1, 3]], 0)
    np.testing.assert_allclose(samples.variables["update_norm"], moved, 1e-4, 2e-7)
    np.testing.assert_allclose(samples.variables["predicted_change"], predicted, 1e-3, 1e-6)


@pytest.mark.parametrize("xla", [False, True], ids=["graph", "xla"])
def test_without_the_gate_a_bad_step_would_show(xla, monkeypatch):
    def write(_, variable, value, sign=0):
        {0: variable.assign, 1: variable.assign_add, -1: variable.assign_sub}[sign](value)

    monkeypatch.setattr(gating, "select", lambda condition, if_true, if_false: if_true)
    monkeypatch.setattr(gating._Waiting, "assign", write)
    monkeypatch.setattr(gating._Waiting, "add", write)
    states, _, _ = _run(OPTIMIZERS["Adam"], [GOOD[0], BAD[0]], True, monkeypatch, xla=xla)
    assert checks.differences(*states)


@pytest.mark.parametrize("gradient", [0.5, np.nan], ids=["accepted", "refused"])
def test_what_comes_after_the_step_is_run_in_any_case(gradient):
    weight = keras.Variable([1.0, 2.0])
    count = tf.Variable(0)
    optimizer = stabilize(keras.optimizers.SGD(1.0, momentum=0.9), clip=None)
    optimizer.build([weight])

    @tf.function
    def inner(grads):
        optimizer.apply([grads], [weight])

    @tf.function
    def outer(grads):
        inner(grads)
        count.assign_add(1)
        return tf.convert_to_tensor(weight) * 2.0

    expected = [1.0, 2.0] if np.isnan(gradient) else [0.5, 1.5]
    after = outer(tf.fill((2,), tf.constant(gradient, tf.float32)))
    np.testing.assert_array_equal(after, 2 * np.array(expected, "float32"))
    np.testing.assert_array_equal(weight, expected)
    assert int(count) == 1


def test_in_a_loop_on_the_device_one_refused_step_holds_up_none_of_the_others():
    weight = keras.Variable([1.0, 2.0])
    optimizer = stabilize(keras.optimizers.SGD(1.0), clip=None)
    optimizer.build([weight])
    gradients = tf.constant([[1.0, 0.0], [np.nan, 1.0], [0.0, np.inf], [2.0, 3.0]])

    @tf.function
    def loop():
        for gradient in gradients:
            optimizer.apply([gradient], [weight])

    loop()
    np.testing.assert_array_equal(weight, [-2.0, -1.0])
    assert int(optimizer.iterations) == 2
    reading = optimizer.telemetry.read()
    assert reading.skipped.tolist() == [False, True, True, False]


def test_in_a_branch_of_a_condition_it_works_as_outside():
    weight = keras.Variable([1.0])
    optimizer = stabilize(keras.optimizers.SGD(1.0), clip=None)
    optimizer.build([weight])

    @tf.function
    def perhaps(gradient, is_wanted):
        if is_wanted:
            optimizer.apply([gradient], [weight])

    for gradient, is_wanted, expected in (
        (0.5, False, 1.0), (np.nan, True, 1.0), (0.5, True, 0.5), (np.inf, False, 0.5),
    ):  # fmt: skip
        perhaps(tf.constant([gradient], tf.float32), tf.constant(is_wanted))
        np.testing.assert_array_equal(weight, [expected])


def _own_assignments():
    class Mine(keras.optimizers.SGD):
        def update_step(self, gradient, variable, learning_rate):
            variable.assign_sub(gradient)

    return Mine(0.1)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.optimizers.SGD(0.1, use_ema=True),
        lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=2),
        _own_assignments,
    ],
    ids=["averages", "accumulation", "another class"],
)
def test_what_assigns_by_other_ways_has_a_condition(make, monkeypatch):
    states, used, optimizer = _run(make, [GOOD[0], *BAD], True, monkeypatch)
    assert not used
    if not optimizer.gradient_accumulation_steps:  # whose micro-batches count
        for state in states[1:]:
            assert not checks.differences(states[0], state)
