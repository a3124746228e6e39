"""`train` under a strategy: the numbers of one device, however batches split."""

import functools

import common_checks as checks
import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab import callbacks, stabilize, training

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(75, 3)).astype("float32")
Y = (X @ DRAW.normal(size=(3, 2)) + 0.1).astype("float32")


def _model(optimizer=None, regularizer=None):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(8, "tanh", kernel_regularizer=regularizer),
            keras.layers.Dense(2),
        ]
    )
    model.compile(optimizer or stabilize("adam", learning_rate=0.01), "mse", metrics=["mae"])
    return model


def _trained(num_replicas, make=_model, data=None, **arguments):
    strategy = checks.mirrored(num_replicas) if num_replicas > 1 else tf.distribute.get_strategy()
    with strategy.scope():
        model = make()
    arguments = {
        "epochs": 2,
        "batch_size": 16,
        "seed": 0,
        "verbose": 0,
        "jit_compile": False,
    } | arguments
    history = training.train(model, data or (X, Y), (X, Y), **arguments)
    return model, history.history


@functools.cache
def _trained_on_one_device():
    return _trained(1)


def _same(pair, other, tolerance=1e-6):
    (model, history), (expected, logs) = pair, other
    for got, value in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(got, value, rtol=tolerance, atol=tolerance)
    assert history.keys() == logs.keys()
    for name in logs:
        np.testing.assert_allclose(history[name], logs[name], rtol=1e-5)


@pytest.mark.parametrize("num_replicas", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_it_is_the_run_on_one_device(num_replicas):
    """75 examples in batches of 16: the last batch of 11 splits unevenly over 2 and 4."""
    _same(_trained(num_replicas), _trained_on_one_device())


def test_every_batch_splits_unevenly():
    _same(_trained(2, batch_size=3), _trained(1, batch_size=3))


@pytest.mark.slow
def test_a_regularizer_counts_once():
    def make():
        return _model(regularizer=keras.regularizers.L2(0.1))

    _same(_trained(2, make), _trained(1, make))


def test_a_plain_keras_optimizer_is_weighted_too():
    def make():
        return _model(keras.optimizers.SGD(0.1, momentum=0.9))

    _same(_trained(2, make), _trained(1, make))


@pytest.mark.slow
def test_a_pipeline_of_batches_of_unknown_size():
    def batches():
        return tf.data.Dataset.from_tensor_slices((X, Y)).batch(13)

    _same(_trained(2, data=batches()), _trained(1, data=batches()))


@pytest.mark.slow
def test_a_batch_smaller_than_the_number_of_replicas():
    data = X[:17], Y[:17]  # batches of 16 and of 1
    got, expected = _trained(4, data=data), _trained(1, data=data)
    for value, other in zip(got[0].get_weights(), expected[0].get_weights(), strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_a_bad_example_in_one_share_skips_the_step_on_all():
    x = X.copy()
    x[40] = np.nan
    got, expected = (_trained(count, data=(x, Y)) for count in (2, 1))
    for value, other in zip(got[0].get_weights(), expected[0].get_weights(), strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-6, atol=1e-6)
    assert got[0].optimizer.telemetry.peek().total_skipped == 2


@pytest.mark.parametrize(
    "policy", ["mixed_float16", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)]
)
def test_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    model, history = _trained(2, epochs=4)
    assert history["loss"][-1] < history["loss"][0]
    assert np.isfinite(model.get_weights()[0]).all()


@pytest.mark.slow
def test_accumulation():
    def make():
        return _model(stabilize(keras.optimizers.Adam(0.01, gradient_accumulation_steps=2)))

    _same(_trained(2, make), _trained(1, make))


@pytest.mark.slow
def test_killed_and_resumed_it_ends_where_undisturbed(tmp_path):
    whole, history = _trained(2, epochs=4)
    _trained(2, epochs=2, run_dir=tmp_path / "run")
    resumed, logs = _trained(2, epochs=4, run_dir=tmp_path / "run", resume=True)
    for got, value in zip(resumed.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(got, value)
    assert logs == history


@pytest.mark.slow
def test_callbacks_and_run_directory(tmp_path):
    monitor = callbacks.GradientMonitor(tmp_path / "run", every_n_steps=2)
    model, history = _trained(
        2, run_dir=tmp_path / "run", callbacks=[monitor, callbacks.DivergenceGuard()]
    )
    assert len(history["grad_norm"]) == 2
    loaded = keras.models.load_model(tmp_path / "run" / "model.keras")
    np.testing.assert_array_equal(loaded.get_weights()[0].shape, model.get_weights()[0].shape)


def test_a_step_of_ones_own_with_logs_of_its_own():
    class Own(keras.Model):
        def train_step(self, data):
            super().train_step(data)
            return {"size": tf.cast(tf.shape(data[0])[0], tf.float32)}

    def make():
        keras.utils.set_random_seed(0)
        inputs = keras.Input((3,))
        model = Own(inputs, keras.layers.Dense(2)(inputs))
        model.compile(stabilize("sgd"), "mse")
        return model

    _, history = _trained(2, make, batch_size=25)
    assert history["size"] == [12.5, 12.5]


def test_xla_is_refused():
    with pytest.raises(ValueError, match="`jit_compile` must be False or 'auto' under a strategy"):
        _trained(2, jit_compile=True)
