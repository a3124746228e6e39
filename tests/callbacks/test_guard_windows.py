"""A guard under gradient accumulation, and one whose run ended by an exception."""

import keras
import numpy as np
import pytest

import gradstab
from gradstab.callbacks import DivergenceGuard

RNG = np.random.default_rng(0)
X = RNG.normal(size=(80, 4)).astype("float32")
Y = X[:, :1]
WITH_NAN = X.copy()
WITH_NAN[75, 2] = np.nan  # in batch 10, which begins the third window of four


def _model(optimizer):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((4,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    model.compile(optimizer, "mse")
    return model


@pytest.mark.parametrize("on_divergence", ["stop", "recover"])
def test_a_window_that_will_be_skipped_is_no_damage(on_divergence):
    """Regression: NaN in the sum of an open window was told as a damaged state."""
    optimizer = gradstab.stabilize(keras.optimizers.Adam(1e-3, gradient_accumulation_steps=4))
    guard = DivergenceGuard(on_divergence, verbose=False, snapshot_every_n_steps=10)
    model = _model(optimizer)
    model.fit(WITH_NAN, Y, batch_size=8, epochs=6, shuffle=False, verbose=0, callbacks=[guard])
    assert guard.verdict is None
    assert not [action for action in guard.actions if action.name == "rollback"]
    reading = optimizer.telemetry.peek()
    assert (reading.cursor, reading.total_skipped) == (15, 6)


class _Interrupt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 6:
            raise KeyboardInterrupt


def test_the_next_guard_takes_out_what_an_interrupted_one_left():
    """Regression: a step that masks examples stayed in the model, and a cut in its schedule."""
    bad = X.copy()
    bad[::10, 0] = np.nan
    schedule = keras.optimizers.schedules.ExponentialDecay(1e-2, 100, 0.9)
    model = _model(keras.optimizers.Adam(schedule))
    arguments = {"batch_size": 8, "shuffle": False, "verbose": 0}
    guard = DivergenceGuard("recover", verbose=False, snapshot_every_n_steps=10)
    with pytest.raises(KeyboardInterrupt):
        model.fit(bad, Y, epochs=9, callbacks=[guard, _Interrupt()], **arguments)
    left = set(vars(model)) & {"train_step", "_gradstab_recovery"}
    assert "_gradstab_recovery" in left
    model.fit(X, Y, epochs=1, callbacks=[DivergenceGuard("stop", verbose=False)], **arguments)
    assert not set(vars(model)) & {"train_step", "_gradstab_recovery"}
    assert "apply" not in vars(model.optimizer)
    assert model.optimizer._learning_rate is schedule
