"""What the steps between two looks tell by the rules that had to cut them short."""

import types

import keras
import numpy as np
import pytest

import gradstab
from gradstab.callbacks import DivergenceGuard
from gradstab.recovery.window import Window


def window_of(*shares, size=50):
    """Return a window after looks of which some shares of the steps were limited."""
    latest = types.SimpleNamespace(loss=np.ones(size), skipped=np.zeros(size, bool), limited=None)
    judge = types.SimpleNamespace(watched=[types.SimpleNamespace(latest=latest)])
    window = Window(judge, None, None)
    told = []
    for look, share in enumerate(shares, 1):
        latest.limited = np.arange(size) < share * size
        window.take_in()
        told.append(window.held(look * size) is not None)
        if look < len(shares):
            window.begin(look * size)
    return window, told


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ((0.1, 0.9, 1.0), [False, False, True]),
        ((0.1, 0.9, 0.3, 0.9), [False] * 4),  # Never two looks in a row.
        ((1.0, 1.0, 1.0), [False] * 3),  # From the start on: nothing to go back to.
        ((0.0, 0.5, 0.5, 0.5), [False] * 4),
    ],
)
def test_limits_that_hold_a_run_are_told_where_they_left_it_alone_before(shares, expected):
    window, told = window_of(*shares)
    assert told == expected
    again = Window(window._judge, None, None)
    again.resume(window.state())
    step = len(shares) * 50
    assert (again.held(step) is not None) == expected[-1]


class Raise(keras.callbacks.Callback):
    """Raises the learning rate a millionfold, and leaves it there."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 10:
            self.model.optimizer.learning_rate = 1e6 * float(self.model.optimizer.learning_rate)


@pytest.mark.filterwarnings("ignore:.*steps were limited or skipped:UserWarning")
def test_a_rate_that_limits_alone_make_bearable_is_taken_back():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(128, 8)).astype("float32")
    y = np.argmax(x @ draw.normal(size=(8, 3)), axis=1)
    keras.utils.set_random_seed(2)
    layers = [keras.layers.Dense(16, "tanh"), keras.layers.Dense(3, "softmax")]
    model = keras.Sequential([keras.Input((8,)), *layers])
    model.compile(gradstab.stabilize(keras.optimizers.SGD(0.02)), "sparse_categorical_crossentropy")
    guard = DivergenceGuard("recover", snapshot_every_n_steps=16, verbose=False)
    model.fit(x, y, batch_size=8, epochs=24, verbose=0, callbacks=[guard, Raise()])
    kinds = [(action.name, action.kind) for action in guard.actions]
    assert kinds == [("rollback", "held_by_limits"), ("recovered", "held_by_limits")]
    assert float(model.optimizer.learning_rate) == pytest.approx(0.02)
