"""Limited steps are counted by rule, and where they are most steps it is said, once."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradstab
from gradstab import callbacks, optimizers, training, transforms


def _model(optimizer):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(optimizer, "mse")
    return model


def _data(scale=1.0):
    draw = np.random.default_rng(0)
    x = (scale * draw.normal(size=(256, 4))).astype("float32")
    return x, x @ np.array([[1.0], [2.0], [3.0], [4.0]], "float32")


def test_rules_are_counted_apart_from_clips_and_from_each_other():
    weight = keras.Variable(np.zeros(2, "float32"))
    inner = keras.optimizers.SGD(0.01)
    optimizer = optimizers.StabilizedOptimizer(
        inner,
        [
            transforms.ClipByGlobalNorm(50.0),
            transforms.LimitOutliers(),
            transforms.LimitRateJumps(),
        ],
    )
    for place, (norm, rate) in enumerate([(1.0, 0.01)] * 30 + [(60.0, 0.01), (1.0, 1.0)]):
        inner.learning_rate.assign(rate)
        optimizer.apply([tf.constant([norm, 0.0])], [weight])
        assert optimizer.telemetry.peek().cursor == place + 1
    reading = optimizer.telemetry.peek(since=28)
    assert reading.clipped.tolist() == [False, False, True, False]
    assert reading.limited.tolist() == [False, False, True, True]
    assert reading.limited_by["outlier"].tolist() == [False, False, True, False]
    assert reading.limited_by["rate_jump"].tolist() == [False, False, False, True]
    assert (reading.total_clipped, reading.total_limited) == (1, 2)
    assert reading.total_limited_by == {"rate_jump": 1, "outlier": 1}


def test_a_skipped_step_is_not_limited():
    weight = keras.Variable(np.zeros(2, "float32"))
    optimizer = gradstab.stabilize("sgd", learning_rate=0.01)
    for norm in [1.0] * 30 + [np.nan]:
        optimizer.apply([tf.constant([norm, 0.0])], [weight])
    reading = optimizer.telemetry.peek()
    assert (reading.total_skipped, reading.total_limited) == (1, 0)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("arguments", [{}, {"jit_compile": True}, {"steps_per_execution": 8}])
def test_limited_steps_reach_the_logs(arguments):
    x, y = _data()
    model = _model(gradstab.stabilize(keras.optimizers.SGD(1.0)))
    model.compile(model.optimizer, "mse", **arguments)
    x[100] *= 1e4
    history = model.fit(x, y, shuffle=False, verbose=0, callbacks=[callbacks.GradientMonitor()])
    total = model.optimizer.telemetry.peek().total_limited
    assert history.history["limited"] == [total]
    assert total > 0


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("watch", [callbacks.GradientMonitor, callbacks.DivergenceGuard])
def test_most_steps_limited_is_told_once_with_rate_reason_and_way_out(watch):
    x, y = _data(scale=30.0)
    model = _model(gradstab.stabilize(keras.optimizers.SGD(1.0)))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        model.fit(x, y, batch_size=8, epochs=3, verbose=0, callbacks=[watch()])
    (message,) = [str(each.message) for each in told if "limited or" in str(each.message)]
    for part in (
        "(overshoot)",
        "times over",
        "instead of 1",
        "limit_overshoot=False",
        "Scale inputs",
    ):
        assert part in message
    # The rate that it names does without a limit.
    rate = float(message.split("was about ")[1].split()[0])
    healthy = _model(gradstab.stabilize(keras.optimizers.SGD(rate)))
    healthy.fit(x, y, batch_size=8, epochs=1, verbose=0)
    assert healthy.optimizer.telemetry.peek().total_limited <= 1


def test_a_loop_of_one_s_own_is_told_when_it_reads():
    weight = keras.Variable(np.ones(3, "float32"))
    optimizer = gradstab.stabilize(keras.optimizers.SGD(100.0))
    for _ in range(40):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(weight.value**2)
            optimizer.scale_loss(loss)
        optimizer.apply([tape.gradient(loss, weight.value)], [weight])
    with pytest.warns(UserWarning, match="overshoot"):
        optimizer.telemetry.read()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.telemetry.read()


def test_train_tells_it_without_a_callback():
    x, y = _data(scale=30.0)
    model = _model(gradstab.stabilize(keras.optimizers.SGD(1.0)))
    with pytest.warns(UserWarning, match="limit_overshoot=False"):
        training.train(model, (x, y), epochs=2, batch_size=8, seed=0, jit_compile=False)


def test_a_healthy_run_is_told_nothing():
    x, y = _data()
    model = _model(gradstab.stabilize(keras.optimizers.SGD(0.05)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(x, y, epochs=2, verbose=0, callbacks=[callbacks.GradientMonitor()])
        model.optimizer.telemetry.read()


def test_rules_are_left_out_by_name():
    chain = gradstab.stabilize("sgd", limit_outliers=False, limit_overshoot=False).transforms
    assert [type(each).__name__ for each in chain] == ["SkipNonFinite", "LimitRateJumps"]
    with pytest.raises(ValueError, match=r"clip=1.0 with .*limit_outliers=False"):
        gradstab.stabilize("sgd", clip=1.0, limit_outliers=False)
    with pytest.raises(TypeError, match="`limit_outliers` must be True or False"):
        gradstab.stabilize("sgd", limit_outliers="no")


def test_only_hands_the_count_on():
    weights = [keras.Variable(np.zeros(2, "float32"), name=name) for name in ("kernel", "bias")]
    optimizer = optimizers.StabilizedOptimizer(
        keras.optimizers.SGD(0.01), [transforms.Only(transforms.LimitOutliers(), include="kernel")]
    )
    for norm in [1.0] * 20 + [1e3]:
        optimizer.apply([tf.constant([norm, 0.0])] * 2, weights)
    assert optimizer.telemetry.peek().total_limited_by == {"outlier": 1}
    assert abs(weights[1].numpy()[0]) > 10 > abs(weights[0].numpy()[0])
