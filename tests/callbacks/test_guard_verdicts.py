"""What the guard says of runs that went wrong, and what it puts back; a healthy run never trips."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradstab
from gradstab.callbacks import DivergenceGuard

L = keras.layers
X = np.random.default_rng(0).normal(size=(128, 6)).astype("float32")
Y = X[:, :1]
STEPS = 16  # in an epoch of batches of 8


class At(keras.callbacks.Callback):
    """Does something to the model after step n."""

    def __init__(self, step, what):
        super().__init__()
        self.step, self.what, self.seen = step, what, 0

    def on_train_batch_end(self, batch, logs=None):
        self.seen += 1
        if self.seen == self.step:
            self.what(self.model)


def _net(optimizer=None, activation="tanh", batch_norm=False, **arguments):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            L.Dense(16, activation, name="a"),
            *([L.BatchNormalization(name="bn")] if batch_norm else []),
            L.Dense(1, name="b"),
        ]
    )
    model.compile(optimizer or gradstab.stabilize("adam", learning_rate=0.01), "mse", **arguments)
    return model


def _run(model, *before, x=X, y=Y, epochs=6, **arguments):
    guard = DivergenceGuard(verbose=False)
    arguments = {"batch_size": 8, "verbose": 0, "epochs": epochs} | arguments
    history = model.fit(x, y, callbacks=[*before, guard], **arguments)
    return guard.verdict, history


def _is_finite(model):
    variables = [
        *model.variables,
        *getattr(model.optimizer, "inner_optimizer", model.optimizer).variables,
    ]
    return all(np.isfinite(v.numpy()).all() for v in variables)


def _spoil(find):
    def spoil(model):
        variable = find(model)
        variable.assign(variable * np.nan)

    return spoil


def _moments(model):
    return getattr(model.optimizer, "inner_optimizer", model.optimizer).variables[2]


DAMAGE = {
    "weights": (lambda m: m.get_layer("a").kernel, "`sequential/a/kernel` (weight of layer `a`)"),
    "the last layer": (lambda m: m.get_layer("b").bias, "(weight of layer `b`)"),
    "moving statistics": (lambda m: m.get_layer("bn").moving_mean, "moving_mean` (moving statis"),
}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_and_the_state_before_it_put_back(name, activation, ours):
    """ReLU on a CPU turns NaN into 0, so that the loss and the gradients stay finite."""
    find, told = DAMAGE[name]
    optimizer = None if ours else keras.optimizers.Adam(0.01)
    model = _net(optimizer, activation, batch_norm=True)
    verdict, history = _run(model, At(3 * STEPS, _spoil(find)))
    assert told.removeprefix("`sequential") in verdict
    assert "holds NaN or infinity" in verdict
    assert "weights did not change" not in verdict
    assert "epoch 2, the best so far" in verdict
    assert len(history.epoch) == 3
    assert _is_finite(model)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("ours", [True, False])
def test_moments_that_are_not_finite_are_never_kept(ours):
    """Spoiled after the last step: another would spoil the weights."""
    model = _net(None if ours else keras.optimizers.Adam(0.01))
    verdict, _ = _run(model, At(3 * STEPS, _spoil(_moments)), epochs=3)
    assert "momentum" in verdict
    assert "state of the optimizer" in verdict
    assert _is_finite(model)


def test_it_looks_once_more_when_training_ends():
    class Late(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            _spoil(lambda m: m.get_layer("a").kernel)(self.model)

    model = _net()
    verdict, _ = _run(model, Late(), epochs=2)
    assert "epoch 2, the best so far" in verdict
    assert _is_finite(model)


def _kill(model):
    model.get_layer("a").bias.assign(np.full(16, -100.0))


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    "optimizer",
    [None, lambda: keras.optimizers.Adam(0.01), lambda: keras.optimizers.SGD(0.05, momentum=0.9)],
    ids=["ours", "Adam", "SGD"],
)
def test_units_that_died_are_told(optimizer):
    model = _net(optimizer and optimizer(), "relu")
    verdict, history = _run(model, At(3 * STEPS, _kill))
    assert "of the units of layer `" in verdict
    assert "/a` are zero" in verdict
    assert "epoch 2, the best so far" in verdict
    assert len(history.epoch) == 4
    assert np.mean((model.predict(X, verbose=0) - Y) ** 2) < 0.9


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("form", [False, "loop"])
def test_units_that_died_are_told_in_train(form):
    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 3:
                _kill(self.model)

    model, guard = _net(activation="relu"), DivergenceGuard(verbose=False)
    gradstab.training.train(
        model, (X, Y), epochs=6, batch_size=8, seed=0, verbose=0, jit_compile=form,
        callbacks=[Kill(), guard],
    )  # fmt: skip
    assert "/a` are zero" in guard.verdict


def test_one_huge_batch_through_batch_norm_is_told():
    def spoil(model):
        model(X[:8] * 1e5, training=True)

    model = _net(activation="relu", batch_norm=True)
    verdict, history = _run(model, At(3 * STEPS + 1, spoil), epochs=5)
    assert "bn/moving_variance` rose from" in verdict
    assert len(history.epoch) == 5  # In time it would have been forgotten.
    assert np.mean((model.predict(X, verbose=0) - Y) ** 2) < 0.9


def test_a_finite_explosion_is_told_though_nothing_is_skipped():
    def blow_up(model):
        for weight in model.trainable_variables:
            weight.assign(weight * 1e8)

    for optimizer in (gradstab.stabilize("sgd", clip=None, learning_rate=1e-30), "sgd"):
        model = _net(optimizer)
        if optimizer == "sgd":
            model.optimizer.learning_rate = 1e-30
        verdict, _ = _run(model, At(2 * STEPS + 8, blow_up), epochs=8)
        assert "is finite and has exploded" in verdict
        assert "epoch 2, the best so far" in verdict
        assert np.abs(model.get_weights()[0]).max() < 10


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("ours", [True, False])
def test_a_cross_entropy_far_below_zero_is_told(ours):
    keras.utils.set_random_seed(1)
    optimizer = keras.optimizers.Adam(0.1)
    model = keras.Sequential([keras.Input((6,)), L.Dense(16, "relu"), L.Dense(1)])
    model.compile(
        gradstab.stabilize(optimizer, clip=None) if ours else optimizer,
        keras.losses.BinaryCrossentropy(from_logits=True),
    )
    verdict, _ = _run(model, y=(Y > 0) * 2.0 + 1.0, epochs=12)
    assert "It can't be below zero where labels lie between 0 and 1" in verdict


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("steps", [1, 5, 16])
@pytest.mark.parametrize("per_call", [1, 100])
def test_a_run_of_which_all_was_skipped_gets_its_verdict(steps, per_call):
    model = _net(steps_per_execution=per_call)
    before = [w.tobytes() for w in model.get_weights()]
    x = np.full((8 * steps, 6), np.nan)
    verdict, _ = _run(model, x=x, y=Y[: 8 * steps], epochs=1)
    words = "The one step of this run was" if steps == 1 else f"All {steps} steps were"
    assert f"{words} skipped (nonfinite)" in verdict
    assert "No step was applied" in verdict
    assert "the best" not in verdict
    assert [w.tobytes() for w in model.get_weights()] == before


def test_steps_are_counted_and_not_calls():
    x = np.concatenate([X, np.full((8 * 400, 6), np.nan)])
    y = np.concatenate([Y] * 26)[: len(x)]
    model = _net(gradstab.stabilize("sgd", learning_rate=0.01), steps_per_execution=16)
    verdict, _ = _run(model, x=x, y=y, epochs=1, shuffle=False)
    assert "steps in a row were skipped, beginning with step 17," in verdict
    assert model.optimizer.telemetry.read().cursor <= 16 + 51 + 64


class LosesGradient(L.Layer):
    """Its output is finite, and the root has no derivative at zero."""

    def call(self, x):
        return x + tf.sqrt(tf.reduce_sum((x - tf.stop_gradient(x)) ** 2))


def test_the_layer_that_loses_the_gradient_is_named():
    keras.utils.set_random_seed(1)
    layers = [L.Dense(8, name="one"), L.Dense(8, name="two"), LosesGradient(name="root")]
    layers += [L.Dense(8, name="three"), L.Dense(1, name="four")]
    model = keras.Sequential([keras.Input((6,)), *layers])
    model.compile(gradstab.stabilize("adam", max_consecutive=5), "mse")
    verdict, _ = _run(model)
    assert "the loss was finite, and layer `root` lost the gradient on the way back" in verdict
    assert "the gradient of a root at 0" in verdict
    assert "No step was applied" in verdict
    assert "the best" not in verdict


def test_if_no_gradient_is_finite_the_data_are_blamed_and_no_layer():
    x = X.copy()
    x[64:] = np.nan
    model = _net(gradstab.stabilize("sgd", max_consecutive=3, learning_rate=0.01))
    verdict, _ = _run(model, x=x, epochs=2, shuffle=False)
    assert "so they do not show whether it began in the data or in a layer" in verdict
    assert "the inputs held NaN or infinity (row 0 of the batch, column 0" in verdict
    assert not any(v.path in verdict for v in model.trainable_variables)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("ours", [True, False])
def test_a_gradient_that_is_zero_throughout_is_told_with_the_layer_that_stops_it(ours):
    keras.utils.set_random_seed(1)
    bias = keras.initializers.Constant(-9.0)
    stop = L.Dense(1, "relu", bias_initializer=bias, name="stop")
    model = keras.Sequential([keras.Input((6,)), L.Dense(8, "relu"), stop])
    model.compile(gradstab.stabilize("adam") if ours else "adam", "mse")
    verdict, history = _run(model, epochs=3)
    assert len(history.epoch) == 3
    assert "nothing was learned" in verdict
    assert "/stop`" in verdict
    assert "nothing to restore" in verdict


def test_a_misspelt_monitor_is_refused_when_the_first_epoch_ends():
    names = "the logs: loss, mae, val_loss, val_mae. Received: monitor='val_los'"
    with pytest.raises(ValueError, match=names):
        _net(metrics=["mae"]).fit(
            X, Y, validation_data=(X, Y), epochs=2, verbose=0,
            callbacks=[DivergenceGuard(monitor="val_los")],
        )  # fmt: skip


def test_a_validation_every_few_epochs_is_waited_for():
    model = _net()
    guard = DivergenceGuard(monitor="val_loss", verbose=False)
    spoil = At(5 * STEPS, _spoil(lambda m: m.get_layer("a").kernel))
    model.fit(
        X, Y, batch_size=8, epochs=6, verbose=0, validation_data=(X, Y), validation_freq=2,
        callbacks=[spoil, guard],
    )  # fmt: skip
    assert "epoch 4, the best so far" in guard.verdict


@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_a_monitor_that_never_came_is_told():
    with pytest.warns(UserWarning, match="`monitor` was in no epoch's logs"):
        _net().fit(X, Y, epochs=2, verbose=0, callbacks=[DivergenceGuard(monitor="val_loss")])
