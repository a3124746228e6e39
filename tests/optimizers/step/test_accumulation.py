"""Micro-batches: their mean is what is measured and clipped, and the window is the step."""

import functools

import common_checks as checks
import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab import callbacks, optimizers, stabilize, transforms
from gradstab.optimizers import StabilizedOptimizer

WINDOW = 3

INNER = {
    "SGD with momentum": lambda **a: keras.optimizers.SGD(0.1, momentum=0.9, **a),
    "AdamW": lambda **a: keras.optimizers.AdamW(0.1, weight_decay=0.1, **a),
    "averages": lambda **a: keras.optimizers.Adam(0.1, use_ema=True, ema_momentum=0.5, **a),
    "averages that overwrite": lambda **a: keras.optimizers.SGD(
        0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2, **a
    ),
    "schedule": lambda **a: keras.optimizers.Adagrad(
        keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.8), **a
    ),
    "loss scale factor": lambda **a: keras.optimizers.SGD(0.1, loss_scale_factor=8.0, **a),
}


def _accumulating(name="SGD with momentum", chain=()):
    inner = INNER[name](gradient_accumulation_steps=WINDOW)
    return StabilizedOptimizer(inner, list(chain))


def _step(optimizer, variables, mode="eager"):
    step, traces = checks.stepper(optimizer, variables, mode)
    return step, traces


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("mode", checks.MODES)
@pytest.mark.parametrize("name", INNER)
def test_without_transforms_it_is_the_inner_optimizer(name, mode):
    plain, expected = INNER[name](gradient_accumulation_steps=WINDOW), checks.make_variables()
    ours, variables = _accumulating(name), checks.make_variables()
    for each in (expected, variables):
        each[1].constraint = keras.constraints.MaxNorm(1.0)
    step, traces = _step(ours, variables, mode)
    for seed in range(2 * WINDOW + 1):
        gradients = checks.make_gradients(seed)
        plain.apply(gradients, expected)
        step(*gradients)
        if seed == 0:
            first = len(traces)
    assert mode == "eager" or len(traces) == first
    pairs = zip(
        [*variables, *ours.inner_optimizer.variables], [*expected, *plain.variables], strict=True
    )
    for got, value in pairs:
        if mode == "eager":
            np.testing.assert_array_equal(got.numpy(), value.numpy(), err_msg=got.path)
        else:
            np.testing.assert_allclose(got.numpy(), value.numpy(), rtol=1e-6, atol=1e-6)
    assert int(ours.iterations) == int(plain.iterations) == 2


def _two_windows(mode, bad=None):
    """Take two good windows, with one between them in which one micro-batch is bad."""
    optimizer = _accumulating(chain=[transforms.SkipNonFinite(), transforms.ClipByNorm(0.5)])
    variables = checks.make_variables()
    step, _ = _step(optimizer, variables, mode)
    for seed in range(WINDOW):
        step(*checks.make_gradients(seed))
    if bad is not None:
        state = [*variables, *_without_counters(optimizer)]
        before = checks.contents(state)
        for micro in range(WINDOW):
            step(*checks.make_gradients(9 + micro, scale=np.nan if micro == bad else 1.0))
        assert not checks.differences(before, checks.contents(state))
        assert int(optimizer.iterations) == 2  # micro-batches are counted, as in Keras
        assert optimizer.telemetry.peek().skipped.tolist() == [False, True]
    for seed in range(WINDOW):
        step(*checks.make_gradients(20 + seed))
    return checks.values_of(variables)


_two_good_windows = functools.cache(_two_windows)


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("mode", checks.MODES)
@pytest.mark.parametrize("place", range(WINDOW))
def test_a_window_with_a_bad_micro_batch_is_skipped_and_the_next_is_as_if_alone(place, mode):
    for got, expected in zip(_two_windows(mode, place), _two_good_windows(mode), strict=True):
        np.testing.assert_array_equal(got, expected)


def _without_counters(optimizer):
    """What a skipped window leaves as it was; accumulators are empty after a window."""
    return [
        variable
        for variable in checks.lasting_state(optimizer)
        if not variable.path.endswith("iteration")
    ]


def test_averages_advance_with_every_micro_batch_of_a_skipped_window():
    optimizer = _accumulating("averages", [transforms.SkipNonFinite()])
    variables = checks.make_variables()
    for seed in range(WINDOW):
        optimizer.apply(checks.make_gradients(seed), variables)
    means = optimizer.inner_optimizer._model_variables_moving_average
    expected = [
        (mean.numpy(), variable.numpy()) for mean, variable in zip(means, variables, strict=True)
    ]
    for _ in range(WINDOW):
        optimizer.apply(checks.make_gradients(1, scale=np.nan), variables)
    for mean, (before, weight) in zip(means, expected, strict=True):
        np.testing.assert_allclose(mean.numpy(), weight + 0.5**WINDOW * (before - weight), 1e-5)


def test_missing_gradients_and_sparse_ones():
    """A micro-batch may leave a variable out; duplicate rows add up over the window."""
    plain = keras.optimizers.SGD(1.0, gradient_accumulation_steps=2)
    ours = StabilizedOptimizer(keras.optimizers.SGD(1.0, gradient_accumulation_steps=2), [])
    expected, variables = checks.make_variables(), checks.make_variables()
    rows = np.array([[1.0, -2.0], [0.5, 3.0], [1.0, 1.0]], "float32")
    dense = np.zeros((5, 2), "float32")
    np.add.at(dense, [3, 1, 3], rows)
    first, second, third = checks.make_gradients()
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        plain.apply([tf.constant(dense), None, third], expected)
    plain.apply([first, second, third], expected)
    ours.apply([checks.sparse([3, 1, 3], rows, (5, 2)), None, third], variables)
    ours.apply([first, second, third], variables)
    for got, value in zip(checks.values_of(variables), checks.values_of(expected), strict=True):
        np.testing.assert_allclose(got, value, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_a_run_killed_within_a_window_goes_on(tmp_path):
    def model():
        keras.utils.set_random_seed(0)
        built = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        inner = keras.optimizers.Adam(0.1, gradient_accumulation_steps=WINDOW)
        built.compile(stabilize(inner), "mse")
        return built

    x, y = np.ones((4, 3)), np.ones((4, 2))
    whole = model()
    for _ in range(5):
        whole.train_on_batch(x, y)
    before = model()
    for _ in range(2):
        before.train_on_batch(x, y)
    before.save(tmp_path / "model.keras")
    after = keras.models.load_model(tmp_path / "model.keras")
    for _ in range(3):
        after.train_on_batch(x, y)
    for got, expected in zip(whole.get_weights(), after.get_weights(), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_fit_with_accumulation_and_callbacks():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    inner = keras.optimizers.SGD(0.1, gradient_accumulation_steps=4)
    model.compile(optimizers.clip_by_global_norm(inner, 0.1), "mse")
    x, y = np.ones((32, 3)), np.ones((32, 2))
    monitor, guard = callbacks.GradientMonitor(), callbacks.DivergenceGuard()
    history = model.fit(x, y, batch_size=4, epochs=2, verbose=0, callbacks=[monitor, guard])
    assert model.optimizer.telemetry.peek().cursor == 4
    assert history.history["clipped"] == [2, 2]


def test_parts_with_different_windows_are_refused():
    first = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    second = keras.optimizers.SGD(0.1)
    kernel, bias = checks.make_variables()[1:]
    inner = keras.optimizers.MultiOptimizer(
        lambda variable: first if variable.name == "kernel" else second
    )
    optimizer = stabilize(inner)
    with pytest.raises(ValueError, match=r"same number of micro-batches.*=\[2, 1\]"):
        optimizer.build([kernel, bias])


def test_parts_with_the_same_window_accumulate_together():
    def make():
        parts = [
            keras.optimizers.SGD(0.1, gradient_accumulation_steps=2),
            keras.optimizers.Adam(0.1, gradient_accumulation_steps=2),
        ]
        inner = keras.optimizers.MultiOptimizer(lambda v: parts["bias" in v.name])
        return inner, checks.make_variables()

    plain, expected = make()
    inner, variables = make()
    ours = StabilizedOptimizer(inner, [transforms.ClipByGlobalNorm(np.inf)])
    for seed in range(5):
        plain.apply(checks.make_gradients(seed), expected)
        ours.apply(checks.make_gradients(seed), variables)
    for got, value in zip(checks.values_of(variables), checks.values_of(expected), strict=True):
        np.testing.assert_array_equal(got, value)
