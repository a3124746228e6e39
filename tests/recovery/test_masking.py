"""Where many batches hold bad examples, these alone are left out from then on."""

import keras
import numpy as np
import pytest

import gradstab
from gradstab.callbacks import DivergenceGuard
from gradstab.optimizers.model.binding import trains_by_keras_step
from gradstab.recovery.masking import Masking

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(64, 4)).astype("float32")
Y = X.sum(-1, keepdims=True)
BAD = [2, 9, 17, 18, 33, 50]


def make_model(ours, layers=()):
    keras.utils.set_random_seed(5)
    model = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(1)])
    optimizer = keras.optimizers.SGD(0.01)
    model.compile(gradstab.stabilize(optimizer, clip=None) if ours else optimizer, "mse")
    return model


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("how", ["fit", "train"])
@pytest.mark.parametrize("ours", [True, False])
def test_a_guard_leaves_out_examples_and_no_more_batches(ours, how, capsys):
    x = X.copy()
    x[BAD] = np.nan
    model = make_model(ours)
    guard = DivergenceGuard("recover", snapshot_every_n_steps=8)
    if how == "fit":
        model.fit(x, Y, batch_size=8, epochs=40, verbose=0, callbacks=[guard])
    else:
        gradstab.training.train(
            model, x, Y, batch_size=8, epochs=40, verbose=0, callbacks=[guard], jit_compile=False
        )
    first, last = [action for action in guard.actions if action.name == "masked"]
    assert first.step <= 32  # A rollback of the plain one, two looks, and one to see what it does.
    assert guard.verdict is None
    left = 40 * len(BAD) - int(last.message.split()[0])
    assert 0 < left <= 4 * len(BAD)
    assert "left out of the loss" in capsys.readouterr().out
    assert "train_step" not in vars(model)
    applied = int(model.optimizer.iterations)
    assert applied > 300, applied
    good = np.delete(np.arange(64), BAD)
    assert model.evaluate(X[good], Y[good], verbose=0) < 0.05


def test_the_step_is_that_of_the_good_examples_alone():
    model, alone = make_model(ours=True), make_model(ours=True)
    masking = Masking(model)
    for _ in range(2):
        masking.see(10, 2)
    assert trains_by_keras_step(model)
    x, y = X[:8].copy(), Y[:8].copy()
    x[2, 1], y[5] = np.nan, np.inf
    model.make_train_function()
    model.train_on_batch(x, y)
    rows = [0, 1, 3, 4, 6, 7]
    alone.train_on_batch(X[rows], Y[rows])
    for one, other in zip(model.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    assert masking.counts() == (2, 1)
    before = model.get_weights()
    model.train_on_batch(np.full_like(x, np.nan), y)  # Of no good example nothing is learned.
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)
    assert masking.counts() == (2, 1)
    assert "2 in 1 of the last batches" in masking.see(10, 1)


def test_it_is_taken_out_where_something_else_is_the_cause():
    layer = keras.layers.Lambda(lambda x: keras.ops.where(keras.ops.sum(x) > 0, x, np.nan))
    model = make_model(ours=True, layers=[layer])
    guard = DivergenceGuard("recover", snapshot_every_n_steps=8, verbose=False)
    model.fit(X, Y, batch_size=4, epochs=4, verbose=0, callbacks=[guard])
    assert model.optimizer.telemetry.peek().total_skipped > 8
    assert [action.name for action in guard.actions] == []
    assert "train_step" not in vars(model)


def test_few_skipped_steps_are_let_alone():
    model = make_model(ours=True)
    masking = Masking(model)
    for skipped in (5, 1, 20, 0, 50):
        assert masking.see(50, skipped) is None
    assert "train_step" not in vars(model)
