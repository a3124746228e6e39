"""The loss in the logs is the mean over the steps that were applied."""

import keras
import numpy as np
import pytest

import gradstab

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 6)).astype("float32")
Y = X[:, :1].copy()
BAD = {"the first batch": [3], "one in the middle": [20], "the last": [63], "two": [3, 30]}


def _fit(x, callbacks=(), *, bind=False, epochs=3, **arguments):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile(gradstab.stabilize("sgd", clip=None, learning_rate=0.05), "mse", **arguments)
    if bind:
        model.optimizer.bind(model)
    history = model.fit(
        x, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks)
    )
    return history, model


def _expected(x, epochs):
    """Batch by batch in NumPy: the bad ones do not count, and do nothing."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    w, b = (value.astype("float64") for value in model.get_weights())
    means = []
    for _ in range(epochs):
        losses = []
        for start in range(0, 64, 8):
            batch, target = x[start : start + 8], Y[start : start + 8]
            if np.isfinite(batch).all():
                error = batch @ w + b - target
                losses.append(np.mean(error**2))
                w, b = w - 0.05 * batch.T @ error / 4, b - 0.05 * error.sum(0) / 4
        means.append(np.mean(losses))
    return means


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
@pytest.mark.parametrize(
    "arguments",
    [{}, {"steps_per_execution": 4}, {"jit_compile": True}, {"run_eagerly": True}],
    ids=str,
)
def test_a_skipped_batch_is_left_out(bad, arguments):
    x = X.copy()
    x[bad] = np.nan
    terminate = keras.callbacks.TerminateOnNaN()
    history, model = _fit(x, [terminate], bind=True, **arguments)
    np.testing.assert_allclose(history.history["loss"], _expected(x, 3), rtol=1e-4)
    assert model.optimizer.telemetry.read().total_skipped == 3 * len(bad)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("callback", ["GradientMonitor", "DivergenceGuard"])
def test_callbacks_see_to_it(callback):
    x = X.copy()
    x[3] = np.nan
    stopping = keras.callbacks.EarlyStopping(monitor="loss", patience=1)
    history, _ = _fit(x, [stopping, getattr(gradstab.callbacks, callback)()], epochs=5)
    np.testing.assert_allclose(history.history["loss"], _expected(x, 5), rtol=1e-4)


def test_an_epoch_without_an_applied_step_has_no_loss():
    class Spoil(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model.layers[-1].kernel.assign(np.full((6, 1), np.nan))

    history, _ = _fit(X, [Spoil(), gradstab.callbacks.GradientMonitor()], epochs=2)
    assert np.isnan(history.history["loss"]).tolist() == [False, True]


def test_validation_is_left_alone():
    x = X.copy()
    x[3] = np.nan
    history, model = _fit(x, bind=True)
    with np.errstate(invalid="ignore"):
        assert np.isnan(model.evaluate(x, Y, verbose=0))
    assert np.isfinite(model.evaluate(X, Y, verbose=0))
    assert np.isfinite(history.history["loss"]).all()


def test_a_mean_that_is_not_guarded_is_keras_own():
    """Nothing skips: the loss is what it is."""
    x = X.copy()
    x[3] = np.nan
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile(gradstab.optimizers.clip_by_value("sgd", 1.0), "mse")
    model.optimizer.bind(model)
    assert np.isnan(model.fit(x, Y, batch_size=8, verbose=0).history["loss"]).all()
