"""float16 training: an overflow anywhere is skipped everywhere, counted, and halves the scale."""

import common_checks as checks
import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab import stabilize, transforms
from gradstab.optimizers import StabilizedOptimizer
from gradstab.optimizers.step import loss_scale

LossScaleOptimizer = keras.optimizers.LossScaleOptimizer


def _scaled(initial_scale=16.0, growth=1000, **arguments):
    inner = stabilize(keras.optimizers.Adam(0.1), clip=0.5, **arguments)
    return LossScaleOptimizer(inner, initial_scale=initial_scale, dynamic_growth_steps=growth)


def _scale(optimizer):
    return float(optimizer.dynamic_scale.numpy())


def _gradients(optimizer, seed=1, scale=1.0):
    """Gradients as they come from a scaled loss."""
    now = _scale(optimizer) if optimizer.built else optimizer.initial_scale
    return [g * now for g in checks.make_gradients(seed, scale=scale)]


@pytest.mark.parametrize("mode", checks.MODES)
def test_a_scaled_step_is_the_plain_one(mode):
    optimizer, variables = _scaled(), checks.make_variables()
    plain, expected = stabilize(keras.optimizers.Adam(0.1), clip=0.5), checks.make_variables()
    step, _ = checks.stepper(optimizer, variables, mode)
    for seed in range(4):
        step(*_gradients(optimizer, seed))
        plain.apply(checks.make_gradients(seed), expected)
    for got, value in zip(checks.values_of(variables), checks.values_of(expected), strict=True):
        np.testing.assert_allclose(got, value, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        optimizer.inner_optimizer.telemetry.peek().grad_norm, plain.telemetry.peek().grad_norm, 1e-5
    )


@pytest.mark.parametrize("mode", checks.MODES)
def test_an_overflow_is_skipped_whole_counted_and_halves_the_scale(mode):
    optimizer, variables = _scaled(), checks.make_variables()
    step, _ = checks.stepper(optimizer, variables, mode)
    step(*_gradients(optimizer))
    of_the_scale = {id(optimizer.dynamic_scale), id(optimizer.step_counter)}
    state = [v for v in checks.lasting_state(optimizer) if id(v) not in of_the_scale]
    before = checks.contents([*variables, *state])
    bad = _gradients(optimizer)
    bad[1] = bad[1] * np.inf
    step(*bad)
    assert not checks.differences(before, checks.contents([*variables, *state]))
    assert _scale(optimizer) == 8.0
    reading = optimizer.inner_optimizer.telemetry.peek()
    assert reading.cause == [None, "overflow"]
    assert reading.bad_variable == [None, "kernel"]
    assert reading.skipped_by_cause == {"overflow": 1, "nonfinite": 0}
    assert reading.consecutive_skips == 0  # expected while the scale is being found
    step(*_gradients(optimizer))
    assert int(optimizer.iterations) == 2


def test_a_chain_that_does_not_skip_skips_overflows_too():
    inner = StabilizedOptimizer(keras.optimizers.SGD(1.0), [])
    optimizer, variables = LossScaleOptimizer(inner, initial_scale=4.0), checks.make_variables()
    before = checks.contents(variables)
    optimizer.apply([g * np.nan for g in checks.make_gradients()], variables)
    assert not checks.differences(before, checks.contents(variables))


def test_a_chain_without_a_budget_is_not_silent_about_overflows_for_ever():
    inner = StabilizedOptimizer(keras.optimizers.SGD(1.0), [])
    optimizer, variables = LossScaleOptimizer(inner, initial_scale=1.0), checks.make_variables()
    bad = [g * np.nan for g in checks.make_gradients()]
    for _ in range(50):
        optimizer.apply(bad, variables)
    inner.raise_if_diverged()
    optimizer.apply(bad, variables)
    with pytest.raises(Exception, match=r"51 steps in a row were skipped"):
        inner.raise_if_diverged()


def test_the_scale_stays_between_1_and_2_to_the_24():
    optimizer, variables = _scaled(initial_scale=4.0, growth=1), checks.make_variables()
    seen = []
    for _ in range(4):
        optimizer.apply([g * np.inf for g in checks.make_gradients()], variables)
        seen.append(_scale(optimizer))
    assert seen == [2.0, 1.0, 1.0, 1.0]
    for _ in range(30):
        optimizer.apply(_gradients(optimizer), variables)
    assert _scale(optimizer) == 2.0**24
    assert all(np.isfinite(value).all() for value in checks.values_of(variables))


def test_the_scale_grows_after_as_many_good_steps_as_keras_has_it_grow():
    ours, variables = _scaled(growth=3), checks.make_variables()
    plain = LossScaleOptimizer(keras.optimizers.Adam(0.1), 16.0, dynamic_growth_steps=3)
    others = checks.make_variables()
    for seed, factor in enumerate([1, 1, np.nan, 1, 1, 1, 1, 1, np.inf, 1, 1, 1]):
        ours.apply(_gradients(ours, seed, factor), variables)
        plain.apply(_gradients(plain, seed, factor), others)
        assert _scale(ours) == _scale(plain)
        assert int(ours.step_counter.numpy()) == int(plain.step_counter.numpy())


def test_overflows_spend_the_budget_once_the_scale_is_at_its_floor():
    optimizer, variables = _scaled(initial_scale=2.0, max_consecutive=2), checks.make_variables()
    inner = optimizer.inner_optimizer
    bad = [g * np.nan for g in checks.make_gradients()]
    for expected in (0, 1, 2):  # the first halves the scale to 1
        optimizer.apply(bad, variables)
        assert inner.telemetry.peek().consecutive_skips == expected
    inner.raise_if_diverged()
    optimizer.apply(bad, variables)
    with pytest.raises(Exception, match=r"3 steps in a row were skipped, beginning with step 2"):
        inner.raise_if_diverged()


def test_what_is_skipped_for_another_reason_leaves_the_scale_alone():
    class SkipAll(transforms.Transform):
        cause = "always"

        def apply(self, values, state, context):
            return values, {}

        def veto(self, state, context):
            return tf.constant(True)

    inner = StabilizedOptimizer(keras.optimizers.SGD(1.0), [SkipAll()])
    optimizer, variables = LossScaleOptimizer(inner, initial_scale=4.0), checks.make_variables()
    optimizer.apply(_gradients(optimizer), variables)
    assert _scale(optimizer) == 4.0
    assert int(optimizer.step_counter.numpy()) == 1
    assert inner.telemetry.peek().cause == ["always"]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("bad_replica", [0, 1])
@pytest.mark.parametrize("num_replicas", [2, 4])
def test_an_overflow_on_one_replica_halves_the_scale_on_all(num_replicas, bad_replica):
    strategy = checks.mirrored(num_replicas)
    with strategy.scope():
        optimizer, variables = _scaled(), checks.make_variables()
    step = checks.replicated(strategy, optimizer, variables)
    shares = [_gradients(optimizer) for _ in range(num_replicas)]
    step(*shares)
    before = checks.contents(variables)
    shares[bad_replica] = [shares[0][0] * np.nan, *shares[0][1:]]
    step(*shares)
    assert not checks.differences(before, checks.contents(variables))
    for variable in (*variables, *optimizer.variables):
        first, *rest = (copy.numpy() for copy in variable.value.values)
        for copy in rest:
            np.testing.assert_array_equal(first, copy)
    assert _scale(optimizer) == 8.0
    assert optimizer.inner_optimizer.telemetry.peek().cause == [None, "overflow"]


def test_other_optimizers_are_left_to_keras(monkeypatch):
    """The hook that stands in Keras' class does nothing for them."""
    asked = []

    def check_finite(self, grads):
        asked.append(type(self.inner_optimizer))
        return original(self, grads)

    original = LossScaleOptimizer.check_finite
    monkeypatch.setattr(LossScaleOptimizer, "check_finite", check_finite)
    for inner in (keras.optimizers.Adam(0.1), stabilize(keras.optimizers.Adam(0.1))):
        outer, variables = LossScaleOptimizer(inner, initial_scale=2.0), checks.make_variables()
        assert float(outer.scale_loss(tf.constant(3.0))) == 6.0
        outer.apply(checks.make_gradients(), variables)
    assert asked == [keras.optimizers.Adam]


@pytest.mark.slow
def test_keras_class_is_changed_when_the_first_wrapper_is_made_and_once(run_python):
    code = """
import gradstab, keras
kind = keras.optimizers.LossScaleOptimizer
before = kind.apply, kind.scale_loss
gradstab.optimizers.StableAdamW()
untouched = (kind.apply, kind.scale_loss) == before
gradstab.stabilize("sgd")
first = kind.apply, kind.scale_loss
gradstab.stabilize("adam")
print(untouched, all(f.__wrapped__ is b for f, b in zip(first, before)), kind.apply is first[0])
"""
    assert run_python(code) == "True True True"
    assert loss_scale.FLOOR == 1.0


def test_the_loss_reaches_the_record_unscaled():
    optimizer, variables = _scaled(), checks.make_variables()
    assert float(optimizer.scale_loss(tf.constant(3.0))) == 48.0
    optimizer.apply(_gradients(optimizer), variables)
    assert optimizer.inner_optimizer.telemetry.peek().loss.tolist() == [3.0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_pure_half_precision_variables(dtype):
    """SGD, since Keras' Adam squares in the variable's own dtype, in which that underflows."""

    def wrapped():
        return stabilize(keras.optimizers.SGD(0.1, momentum=0.9), clip=0.5)

    optimizer, variables = LossScaleOptimizer(wrapped(), 16.0), checks.make_variables(dtype)
    reference, exact = wrapped(), checks.make_variables()
    for seed in range(3):
        gradients = [tf.cast(g, dtype) for g in _gradients(optimizer, seed)]
        optimizer.apply(gradients, variables)
        reference.apply(checks.make_gradients(seed), exact)
    tolerance = {"float16": 1e-3, "bfloat16": 1e-2}[dtype]
    for got, value in zip(variables, checks.values_of(exact), strict=True):
        got = np.asarray(keras.ops.convert_to_numpy(got), "float64")
        np.testing.assert_allclose(got, value, rtol=tolerance, atol=tolerance)


def test_gradients_that_float16_would_lose_when_they_are_unscaled_are_kept():
    """5e-4 at a scale of 2^15 is 1.5e-8, which is 0 in float16."""
    variable = keras.Variable(np.zeros(4), dtype="float16")
    optimizer = LossScaleOptimizer(stabilize("sgd", clip=None), initial_scale=2.0**15)
    optimizer.apply([tf.fill((4,), tf.cast(5e-4, tf.float16))], [variable])
    norm = optimizer.inner_optimizer.telemetry.peek().grad_norm
    np.testing.assert_allclose(norm, 2 * 5e-4 / 2**15, rtol=1e-3)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("num_replicas", [1, 2])
def test_accumulation_under_a_loss_scale(num_replicas):
    """Each micro-batch that overflows halves the scale; its window is skipped."""
    strategy = checks.mirrored(num_replicas) if num_replicas > 1 else None
    scope = strategy.scope() if strategy else tf.distribute.get_strategy().scope()
    with scope:
        inner = stabilize(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), clip=0.5)
        optimizer, variables = (
            LossScaleOptimizer(inner, initial_scale=16.0),
            checks.make_variables(),
        )
    if strategy:
        on_all = checks.replicated(strategy, optimizer, variables)
        step = lambda *gradients: on_all(*[[g / num_replicas for g in gradients]] * num_replicas)  # noqa: E731
    else:
        step, _ = checks.stepper(optimizer, variables, "graph")
    for seed, factor in enumerate((1.0, 1.0, np.inf, 1.0, 1.0, 1.0)):
        step(*_gradients(optimizer, seed, factor))
    plain, expected = stabilize(keras.optimizers.SGD(0.1), clip=0.5), checks.make_variables()
    for first in (0, 4):
        pair = [checks.make_gradients(first), checks.make_gradients(first + 1)]
        plain.apply([(a + b) / 2 for a, b in zip(*pair, strict=True)], expected)
    for got, value in zip(checks.values_of(variables), checks.values_of(expected), strict=True):
        np.testing.assert_allclose(got, value, rtol=1e-5, atol=1e-6)
    assert inner.telemetry.peek().cause == [None, "overflow", None]
    assert _scale(optimizer) == 8.0


def test_swap_ema_weights_on_the_pair():
    keras.config.set_dtype_policy("mixed_float16")
    inner = keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.5)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, dtype="float32")])
    model.compile(stabilize(inner), "mse")
    x, y = np.ones((8, 3)), np.ones((8, 1))
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    model.fit(x, y, epochs=2, verbose=0, validation_data=(x, y), callbacks=[swap])
    assert isinstance(model.optimizer, LossScaleOptimizer)
