"""BatchNorm's statistics change before an optimizer can veto; a bound one puts them back."""

import common_checks as checks
import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab import DivergenceError, callbacks, stabilize, training
from gradstab.optimizers.model.binding import bind

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(24, 3)).astype("float32")
Y = DRAW.normal(size=(24, 1)).astype("float32")
BAD = X.copy()
BAD[8:16] = np.nan  # the second of three batches


def _model(optimizer=None, dropout=0.5, **arguments):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dropout(dropout, seed=1),
            keras.layers.Dense(1),
        ]
    )
    model.compile(optimizer or stabilize("adam", learning_rate=0.1), "mse", **arguments)
    return model


def _statistics(model):
    return model.get_layer("norm").non_trainable_variables


@pytest.mark.parametrize(
    ("callback", "jit_compile"),
    [
        (callbacks.GradientMonitor, False),
        (callbacks.DivergenceGuard, True),
        pytest.param(callbacks.GradientMonitor, True, marks=pytest.mark.slow),
        pytest.param(callbacks.DivergenceGuard, False, marks=pytest.mark.slow),
    ],
)
def test_in_fit_a_skipped_batch_is_as_if_it_had_not_been(callback, jit_compile):
    def trained(x, y):
        model = _model(dropout=0.0, jit_compile=jit_compile)
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0, callbacks=[callback()])
        return model

    model = trained(BAD, Y)
    expected = trained(np.concatenate([X[:8], X[16:]]), np.concatenate([Y[:8], Y[16:]]))
    assert model.optimizer.telemetry.peek().total_skipped == 1
    for got, value in zip(checks.values_of(model.weights), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(got, value)


def test_without_binding_the_statistics_are_poisoned():
    """What binding is for. If Keras puts them back one day, the docs have to say so."""
    model = _model()
    model.fit(BAD, Y, batch_size=8, shuffle=False, verbose=0)
    assert np.isnan(_statistics(model)[0].numpy()).all()


@pytest.mark.slow
def test_in_a_second_fit_that_brings_the_callback():
    """The step was traced before; it has to be traced anew to know the statistics."""
    model = _model()
    model.fit(X, Y, batch_size=8, verbose=0)
    monitor = callbacks.GradientMonitor()
    model.fit(BAD, Y, batch_size=8, shuffle=False, verbose=0, callbacks=[monitor])
    assert all(np.isfinite(value).all() for value in checks.values_of(model.variables))
    model.fit(BAD, Y, batch_size=8, shuffle=False, verbose=0, callbacks=[monitor])
    assert all(np.isfinite(value).all() for value in checks.values_of(model.variables))


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("jit_compile", [False, True])
def test_in_train(jit_compile):
    model = _model()
    with pytest.raises(DivergenceError, match="all 6 steps"):
        training.train(model, (BAD, Y), epochs=2, batch_size=8, seed=0, verbose=0,
                       jit_compile=jit_compile)  # fmt: skip
    assert all(np.isfinite(value).all() for value in checks.values_of(model.variables))
    # Bound by `train`, it stays bound: a skipped step moves nothing but seeds and telemetry.
    state = [*model.weights, *checks.lasting_state(model.optimizer)]
    before = checks.contents(state)
    model.train_on_batch(np.full((8, 3), np.nan), Y[:8])
    assert not checks.differences(before, checks.contents(state))


@pytest.mark.parametrize(
    ("num_replicas", "policy"),
    [
        (1, "mixed_float16"),
        (2, "float32"),
        pytest.param(1, "float32", marks=pytest.mark.slow),
        pytest.param(2, "mixed_float16", marks=pytest.mark.slow),
    ],
)
def test_under_strategies_and_loss_scaling(num_replicas, policy):
    keras.config.set_dtype_policy(policy)
    strategy = checks.mirrored(2) if num_replicas == 2 else tf.distribute.get_strategy()
    with strategy.scope():
        model = _model()
    monitor = callbacks.GradientMonitor()
    model.fit(X, Y, batch_size=8, verbose=0, callbacks=[monitor])
    copies = [
        copy.numpy()
        for variable in _statistics(model)
        for copy in strategy.experimental_local_results(variable.value)
    ]
    bad = X[:8].copy()
    bad[7] = np.nan  # in the last replica's share alone
    model.fit(bad, Y[:8], batch_size=8, shuffle=False, verbose=0)
    after = [
        copy.numpy()
        for variable in _statistics(model)
        for copy in strategy.experimental_local_results(variable.value)
    ]
    for got, expected in zip(after, copies, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_over_a_window_of_micro_batches():
    inner = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    model = _model(stabilize(inner))
    model.optimizer.build(model.trainable_variables)
    model.optimizer.bind(model)
    for _ in range(2):
        model.train_on_batch(X[:8], Y[:8])
    before = checks.values_of(_statistics(model))
    model.train_on_batch(BAD[8:16], Y[8:16])
    model.train_on_batch(X[:8], Y[:8])  # ends the window, which is skipped
    for got, expected in zip(checks.values_of(_statistics(model)), before, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.slow
def test_statistics_loaded_between_two_fits_are_what_is_put_back(tmp_path):
    model = _model()
    monitor = callbacks.GradientMonitor()
    model.fit(X, Y, batch_size=8, verbose=0, callbacks=[monitor])
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = checks.values_of(_statistics(model))
    model.fit(X, Y, batch_size=8, verbose=0, callbacks=[monitor])
    model.load_weights(tmp_path / "model.weights.h5")
    nothing = np.full((8, 3), np.nan)
    model.fit(nothing, Y[:8], batch_size=8, verbose=0, callbacks=[monitor])
    for got, expected in zip(checks.values_of(_statistics(model)), loaded, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_bound_optimizer_loads_where_nobody_binds(tmp_path):
    model = _model()
    model.fit(X, Y, batch_size=8, verbose=0, callbacks=[callbacks.GradientMonitor()])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    pairs = zip(model.optimizer.variables, loaded.optimizer.variables, strict=True)
    for ours, theirs in pairs:
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_a_frozen_layer_is_not_copied():
    model = _model()
    model.get_layer("norm").trainable = False
    model.layers[0].trainable = False
    assert bind(model).forward_variables == ()
