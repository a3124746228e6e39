"""The guard stops a diverged run, names the variable and restores the best state."""

import keras
import numpy as np
import pytest

import gradstab
from gradstab.callbacks import DivergenceGuard


def make_model(optimizer, **arguments):
    keras.utils.set_random_seed(2)
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(4, name="first"), keras.layers.Dense(1, name="last")]
    )
    model.compile(optimizer, "mse", **arguments)
    return model


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(64, 6)).astype("float32"), rng.normal(size=(64, 1)).astype("float32")


class Poison(keras.callbacks.Callback):
    """Makes one weight NaN when an epoch begins, and notes the state that was best before."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch
        self.before = None

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            self.before = state(self.model)
            kernel = self.model.get_layer("last").kernel
            kernel.assign(kernel * np.nan)


def state(model):
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    return [v.numpy().tobytes() for v in (*model.variables, *optimizer.variables)]


def fit(model, data, callbacks, **arguments):
    arguments = {"epochs": 5, "batch_size": 8, "verbose": 0, "shuffle": False} | arguments
    return model.fit(*data, callbacks=callbacks, **arguments)


@pytest.mark.parametrize("steps_per_execution", [1, 8])
def test_too_many_skips_stop_fit_and_restore_the_best_epoch(data, steps_per_execution, capsys):
    optimizer = gradstab.stabilize("adam", max_consecutive=3, learning_rate=0.01)
    model = make_model(optimizer, steps_per_execution=steps_per_execution)
    guard, poison = DivergenceGuard(), Poison(epoch=2)
    history = fit(model, data, [guard, poison])
    assert len(history.epoch) == 3
    # The loss fell until then, so the last healthy epoch was the best.
    assert state(model) == poison.before
    # The gradients of both layers are NaN. What is damaged is the weight of the second.
    assert "beginning with step 17" in guard.verdict
    assert f"`{model.get_layer('last').kernel.path}` (weight of layer `last`)" in guard.verdict
    assert "weights did not change" not in guard.verdict
    assert "epoch 2, the best so far" in guard.verdict
    assert guard.verdict in capsys.readouterr().out


def test_one_skipped_batch_in_every_epoch_does_not_hide_the_best(data):
    """Keras' mean loss over such an epoch would be NaN, so that no epoch would be the best."""
    x, y = data[0].copy(), data[1]
    x[20] = np.nan
    model = make_model(gradstab.stabilize("adam", max_consecutive=3, learning_rate=0.01))
    guard, poison = DivergenceGuard(verbose=False), Poison(epoch=2)
    history = fit(model, (x, y), [guard, poison])
    assert np.isnan(history.history["loss"]).tolist() == [False, False, True]
    assert state(model) == poison.before
    assert "epoch 2, the best so far" in guard.verdict


def test_a_restored_run_can_go_on(data):
    model = make_model(gradstab.stabilize("adam", max_consecutive=3, learning_rate=0.01))
    guard = DivergenceGuard(verbose=False)
    fit(model, data, [guard, Poison(epoch=2)])
    history = fit(model, data, [guard], epochs=2)
    assert guard.verdict is None
    assert len(history.epoch) == 2
    assert np.isfinite(history.history["loss"]).all()
    model.optimizer.raise_if_diverged()


def test_raise(data):
    model = make_model(gradstab.stabilize("sgd", max_consecutive=3, learning_rate=0.01))
    poison = Poison(epoch=1)
    with pytest.raises(gradstab.DivergenceError, match="steps in a row were skipped"):
        fit(model, data, [poison, DivergenceGuard("raise")])
    assert state(model) == poison.before


def test_training_train_is_stopped_as_well(data):
    model = make_model(gradstab.stabilize("sgd", max_consecutive=3, learning_rate=0.01))
    guard, poison = DivergenceGuard(verbose=False), Poison(epoch=1)
    history = gradstab.training.train(
        model, data, epochs=5, batch_size=8, seed=0, verbose=0, callbacks=[guard, poison]
    )
    assert len(history.epoch) == 2
    assert guard.verdict is not None
    assert state(model) == poison.before


def test_no_more_than_the_budget_is_let_alone(data):
    x, y = data
    x = x.copy()
    x[8:32] = np.nan  # three batches in a row
    model = make_model(gradstab.stabilize("sgd", max_consecutive=3, learning_rate=0.01))
    guard = DivergenceGuard()
    history = fit(model, (x, y), [guard], epochs=2)
    assert guard.verdict is None
    assert len(history.epoch) == 2
    assert model.optimizer.telemetry.read().total_skipped == 6


def test_the_initial_state_is_restored_if_there_is_no_better(data):
    model = make_model(gradstab.optimizers.clip_by_value("sgd", 1.0, learning_rate=0.01))
    before = [w.tobytes() for w in model.get_weights()]
    x, y = data
    guard = DivergenceGuard(verbose=False)
    history = fit(model, (np.full_like(x, np.nan), y), [guard])
    assert len(history.epoch) == 1
    assert [w.tobytes() for w in model.get_weights()] == before
    assert "with which training began are back" in guard.verdict
    assert "no `SkipNonFinite`" in guard.verdict


def test_a_plain_optimizer_is_judged_by_its_weights(data):
    model = make_model(keras.optimizers.Adam(0.01))
    guard, poison = DivergenceGuard(verbose=False), Poison(epoch=2)
    history = fit(model, data, [guard, poison])
    assert len(history.epoch) == 3
    assert state(model) == poison.before
    assert "holds NaN or infinity" in guard.verdict


def test_a_healthy_run_is_let_alone(data):
    def run(callbacks):
        model = make_model(gradstab.stabilize("adam", learning_rate=0.01))
        fit(model, data, callbacks)
        return model.get_weights()

    for one, other in zip(run([DivergenceGuard()]), run([]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_unknown_answer_is_refused():
    with pytest.raises(ValueError, match=r"`on_divergence` must be one of 'recover', 'stop'"):
        DivergenceGuard("ignore")
