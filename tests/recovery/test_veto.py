"""A plain optimizer skips steps that are not finite once a run has shown one."""

import keras
import numpy as np

from gradstab.callbacks import DivergenceGuard
from gradstab.optimizers.watching.find import optimizers_of
from gradstab.recovery.snapshots import State
from gradstab.recovery.veto import Veto

X = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
Y = X.sum(-1, keepdims=True)


def make_model():
    keras.utils.set_random_seed(5)
    layers = [keras.layers.Dense(6), keras.layers.BatchNormalization(), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def everything(model):
    values, _ = State(model, optimizers_of(model)).read()
    return [value.numpy().tobytes() for value in values]


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted():
    model = make_model()
    veto = Veto(model)
    assert veto.can_install
    model.make_train_function()
    veto.install()
    assert not veto.can_install
    model.train_on_batch(X[:16], Y[:16])
    model.reset_metrics()
    veto.synchronize()
    before = everything(model)
    model.train_on_batch(X[:16] * np.nan, Y[:16])
    assert everything(model) == before
    assert veto.skipped() == 1
    model.train_on_batch(X[:16], Y[:16])
    assert everything(model) != before
    assert int(model.optimizer.iterations) == 2
    veto.uninstall()
    assert "apply" not in vars(model.optimizer)


def test_too_many_in_a_row_are_told():
    model = make_model()
    veto = Veto(model)
    model.make_train_function()
    veto.install()
    model.fit(X[:1] * np.nan, Y[:1], epochs=50, verbose=0)
    assert veto.told() is None
    model.fit(X[:1] * np.nan, Y[:1], verbose=0)
    assert "51 steps in a row" in veto.told()


def test_one_bad_batch_in_every_epoch_costs_one_rollback():
    x = X.copy()
    x[37] = np.nan
    model = make_model()
    guard = DivergenceGuard("recover", snapshot_every_n_steps=4, verbose=False)
    history = model.fit(
        x, Y, batch_size=4, epochs=12, shuffle=False, verbose=0, callbacks=[guard]
    ).history
    assert [action.name for action in guard.actions].count("rollback") == 1
    assert guard.verdict is None
    assert np.isfinite(history["loss"]).all()
    assert history["loss"][-1] < history["loss"][0]


def test_what_takes_steps_of_its_own_is_left_alone():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, x):
            return self.dense(x)

        def train_step(self, data):
            return super().train_step(data)

    model = Own()
    model.compile("adam", "mse")
    model(X[:1])
    assert not Veto(model).can_install
    scaled = make_model()
    scaled.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()), "mse")
    assert not Veto(scaled).can_install
