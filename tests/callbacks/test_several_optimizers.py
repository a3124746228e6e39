"""Every optimizer that a model holds is watched and guarded, wherever it stands."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradstab
from gradstab import monitoring
from gradstab.callbacks import DivergenceGuard, GradientMonitor

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 4)).astype("float32")
KEYS = ("grad_norm", "grad_norm_max", "clipped", "limited", "skipped", "update_ratio")


class Alone(keras.Model):
    """Trains by one optimizer of its own, as an attribute."""

    def __init__(self, own):
        super().__init__()
        self.a = L.Dense(1)
        self.own = own

    def call(self, x):
        return self.a(x)

    def train_step(self, x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(self.a(x) ** 2)
        weights = self.a.trainable_weights
        self.own.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return {"mean": loss}


class Pair(keras.Model):
    """The layout of Keras' GANs: two networks, two optimizers as attributes."""

    def __init__(self, d_optimizer, g_optimizer):
        super().__init__()
        self.d = keras.Sequential([keras.Input((4,)), L.BatchNormalization(), L.Dense(1)])
        self.g = keras.Sequential([keras.Input((4,)), L.Dense(4)])
        self.d_optimizer, self.g_optimizer = d_optimizer, g_optimizer

    def train_step(self, x):
        with tf.GradientTape() as tape:
            d_loss = tf.reduce_mean((self.d(x, training=True) - 1.0) ** 2)
        weights = self.d.trainable_weights
        self.d_optimizer.apply_gradients(zip(tape.gradient(d_loss, weights), weights, strict=True))
        with tf.GradientTape() as tape:
            g_loss = tf.reduce_mean(self.d(self.g(tf.ones_like(x))) ** 2)
        weights = self.g.trainable_weights
        self.g_optimizer.apply_gradients(zip(tape.gradient(g_loss, weights), weights, strict=True))
        return {"d_loss": d_loss, "g_loss": g_loss}


def _pair(ours=True, **arguments):
    keras.utils.set_random_seed(1)

    def make():
        optimizer = keras.optimizers.Adam(1e-2)
        return gradstab.stabilize(optimizer, **arguments) if ours else optimizer

    model = Pair(make(), make())
    model.compile(optimizer=None)
    return model


def _fit(model, *callbacks, x=X, **arguments):
    arguments = {"batch_size": 8, "epochs": 3, "verbose": 0, "shuffle": False} | arguments
    return model.fit(x, callbacks=list(callbacks), **arguments).history


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("compiled", [None, "rmsprop"])
@pytest.mark.filterwarnings("ignore:The model 'alone' holds optimizers that took no step")
def test_an_optimizer_as_an_attribute_is_watched_and_guarded(compiled):
    """All its steps were skipped, and both callbacks saw another optimizer, or none."""
    model = Alone(gradstab.stabilize("adam", max_consecutive=5))
    model(X)
    model.compile(compiled)
    guard = DivergenceGuard(verbose=False)
    logs = _fit(model, GradientMonitor(), guard, x=np.full_like(X, np.nan))
    assert logs["skipped"] == [8]
    assert "8 steps in a row were skipped" in guard.verdict or "All 8" in guard.verdict
    assert np.isnan(logs["grad_norm"]).all()


@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_an_optimizer_that_took_no_step_is_told_and_has_no_columns():
    model = Alone(gradstab.stabilize("adam"))
    model(X)
    model.compile("rmsprop")
    with pytest.warns(UserWarning, match=r"took no step in the first epoch: `optimizer` \(RMSprop"):
        logs = _fit(model, GradientMonitor())
    assert set(logs) == {"mean", *KEYS}
    assert np.isfinite(logs["grad_norm"]).all()


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("arguments", [{}, {"run_eagerly": True}, {"steps_per_execution": 3}])
def test_two_optimizers_have_columns_and_records_by_name(ours, arguments, tmp_path):
    model, alone = _pair(ours), _pair(ours)
    for each in (model, alone):
        each.compile(optimizer=None, **arguments)
    monitor, guard = GradientMonitor(tmp_path, every_n_steps=4), DivergenceGuard(verbose=False)
    logs = _fit(model, monitor, guard)
    names = {f"{name}/{key}" for name in ("d_optimizer", "g_optimizer") for key in KEYS}
    assert set(logs) == {"d_loss", "g_loss", *names}
    assert np.isfinite([values for name, values in logs.items() if "norm" in name]).all()
    assert guard.verdict is None
    _fit(alone)
    for one, other in zip(model.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    d, g = monitoring.read_record(tmp_path), monitoring.read_record(tmp_path / "g_optimizer")
    assert d.norms.names == tuple(v.path for v in model.d.trainable_variables)
    assert g.norms.names == tuple(v.path for v in model.g.trainable_variables)
    assert len(d.norms.steps) == len(g.norms.steps) == 7  # the first, and each fourth of 24
    assert not {"apply", "scale_loss"} & set(vars(model.d_optimizer))


def test_the_norms_of_each_optimizer_are_its_own(tmp_path):
    model = _pair(ours=False)
    with tf.GradientTape(persistent=True) as tape:
        loss = tf.reduce_mean((model.d(X[:8], training=True) - 1.0) ** 2)
    norm = np.sqrt(
        sum(np.sum(g.numpy() ** 2) for g in tape.gradient(loss, model.d.trainable_weights))
    )
    model.d.layers[0].moving_mean.assign([0.0] * 4)
    model.d.layers[0].moving_variance.assign([1.0] * 4)
    logs = _fit(model, GradientMonitor(), epochs=1, x=X[:8])
    np.testing.assert_allclose(logs["d_optimizer/grad_norm"], norm, rtol=1e-5)
    assert logs["g_optimizer/grad_norm"] != logs["d_optimizer/grad_norm"]


def test_the_guard_names_the_optimizer_and_puts_all_back():
    class Spoil(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                self.before = [v.numpy().tobytes() for v in _state(self.model)]
                self.model.g.layers[-1].kernel.assign(np.full((4, 4), np.nan))

    def _state(model):
        optimizers = (model.d_optimizer.inner_optimizer, model.g_optimizer.inner_optimizer)
        return [*model.variables, *(v for each in optimizers for v in each.variables)]

    model = _pair(max_consecutive=5)
    guard, spoil = DivergenceGuard(verbose=False), Spoil()
    _fit(model, spoil, guard, epochs=6)
    assert "Of `g_optimizer`" in guard.verdict
    assert f"`{model.g.layers[-1].kernel.path}` (weight" in guard.verdict
    assert "epoch 2, the last that was whole" in guard.verdict
    assert [v.numpy().tobytes() for v in _state(model)] == spoil.before


class PairInTraining(Pair):
    """The second step changes the statistics of the first network too, as in a DCGAN."""

    def train_step(self, x):
        with tf.GradientTape() as tape:
            d_loss = tf.reduce_mean((self.d(x, training=True) - 1.0) ** 2)
        weights = self.d.trainable_weights
        self.d_optimizer.apply_gradients(zip(tape.gradient(d_loss, weights), weights, strict=True))
        with tf.GradientTape() as tape:
            g_loss = tf.reduce_mean(self.d(self.g(tf.ones_like(x)), training=True) ** 2)
        weights = self.g.trainable_weights
        self.g_optimizer.apply_gradients(zip(tape.gradient(g_loss, weights), weights, strict=True))
        return {"d_loss": d_loss, "g_loss": g_loss}


def test_a_step_that_one_optimizer_skips_keeps_what_the_other_has_applied():
    """Each put back its own copy of BatchNorm's statistics, from before the other's steps."""
    x = X.copy()
    x[24:32] = np.nan
    keras.utils.set_random_seed(1)
    d_optimizer = gradstab.stabilize("adam", clip=None)
    model = PairInTraining(d_optimizer, gradstab.stabilize("sgd", clip=None, learning_rate=1e-9))
    model.compile(optimizer=None)
    fake = model.g(np.ones((1, 4))).numpy()[0]
    _fit(model, GradientMonitor(), x=x, epochs=1)
    expected = np.zeros(4)
    for start in range(0, 64, 8):
        if np.isfinite(x[start : start + 8]).all():
            expected = 0.99 * expected + 0.01 * x[start : start + 8].mean(0)
        expected = 0.99 * expected + 0.01 * fake
    np.testing.assert_allclose(model.d.layers[0].moving_mean, expected, rtol=1e-4)
    assert model.d_optimizer.telemetry.read().total_skipped == 1
    assert model.g_optimizer.telemetry.read().total_skipped == 0
