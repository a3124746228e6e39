"""The monitor on optimizers that are not gradstab's: it sees their steps, and leaves no trace."""

import common_checks as checks
import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab import callbacks, monitoring, training

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(24, 3)).astype("float32")
Y = DRAW.normal(size=(24, 1)).astype("float32")
KEYS = ("grad_norm", "grad_norm_max", "clipped", "limited", "skipped", "update_ratio")


def _model(optimizer=None, **arguments):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)]
    )
    model.compile(optimizer or keras.optimizers.Adam(0.01), "mse", **arguments)
    return model


def _norm_of_first_batch(model):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(X[:8]) - Y[:8]) ** 2)
    gradients = tape.gradient(loss, model.trainable_variables)
    return np.sqrt(sum((g.numpy().astype("float64") ** 2).sum() for g in gradients)), float(loss)


def _fit(model, monitor=None, **arguments):
    arguments = {"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0} | arguments
    watching = [] if monitor is None else [monitor]
    return model.fit(X, Y, callbacks=watching, **arguments).history


OPTIMIZERS = {
    "Adam": lambda: keras.optimizers.Adam(0.01),
    "SGD that clips": lambda: keras.optimizers.SGD(0.1, momentum=0.9, global_clipnorm=0.1),
    "accumulating": lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=2),
}


CASES = [
    *[("Adam", arguments) for arguments in (
        {"jit_compile": False}, {"jit_compile": True}, {"run_eagerly": True},
        {"steps_per_execution": 3},
    )],
    ("SGD that clips", {"jit_compile": False}),
    ("accumulating", {"jit_compile": False}),
]  # fmt: skip


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("optimizer", "arguments"), CASES, ids=str)
def test_what_is_measured_and_that_nothing_changes(optimizer, arguments, tmp_path):
    watched, plain = (_model(OPTIMIZERS[optimizer](), **arguments) for _ in range(2))
    norm, loss = _norm_of_first_batch(watched)
    monitor = callbacks.GradientMonitor(tmp_path, every_n_steps=1)
    logs, unwatched_logs = _fit(watched, monitor), _fit(plain)
    checks.close(watched.variables, plain.variables)
    checks.close(watched.optimizer.variables, plain.optimizer.variables)
    assert set(logs) == {*unwatched_logs, *KEYS}
    record = monitoring.read_record(tmp_path)
    np.testing.assert_allclose(record.column("grad_norm")[0], norm, rtol=1e-5)
    np.testing.assert_allclose(record.column("loss")[0], loss, rtol=1e-5)
    assert record.steps.tolist() == [1, 2, 3, 4, 5, 6]
    assert record.norms.names == tuple(v.path for v in watched.trainable_variables)
    assert not {"apply", "scale_loss"} & set(vars(watched.optimizer))


def test_the_second_run_without_the_monitor_is_not_watched():
    model = _model()
    monitor = callbacks.GradientMonitor()
    _fit(model)
    assert "grad_norm" in _fit(model, monitor)
    function = model.train_function
    assert set(_fit(model)) == {"loss"}
    assert model.train_function is function
    assert "grad_norm" in _fit(model, monitor)


class _Stop(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        raise RuntimeError("stopped by a callback")


def _breaking():
    """A pipeline that fails in its third batch, and so in the middle of a call of the step."""

    def batch(place):
        ok = tf.debugging.assert_less(place, 2, message="out of data")
        with tf.control_dependencies([ok] if ok is not None else []):
            return tf.constant(X[:8]), tf.constant(Y[:8])

    return tf.data.Dataset.range(4).map(lambda place: batch(tf.cast(place, tf.int32)))


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("where", ["in a step", "in a callback"])
def test_after_an_exception_the_model_is_as_it_was(where):
    model = _model()
    monitor = callbacks.GradientMonitor()
    if where == "in a callback":
        with pytest.raises(RuntimeError, match="stopped by a callback"):
            model.fit(X, Y, verbose=0, callbacks=[monitor, _Stop()])
    else:
        with pytest.raises(tf.errors.InvalidArgumentError, match="out of data"):
            model.fit(_breaking(), shuffle=False, verbose=0, callbacks=[monitor])
    assert not {"apply", "scale_loss"} & set(vars(model.optimizer))
    assert set(_fit(model)) == {"loss"}  # not watched
    before = monitor._observer.telemetry.peek().cursor
    _fit(model)
    assert monitor._observer.telemetry.peek().cursor == before


@pytest.mark.slow
def test_what_is_saved_during_the_watch_loads_without_gradstab(tmp_path, run_python):
    model = _model()
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "model.keras")
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[callbacks.GradientMonitor(), checkpoint])
    model.save(tmp_path / "after.keras")
    code = """
import sys
sys.modules["gradstab"] = None
import keras
for name in sys.argv[1:]:
    model = keras.models.load_model(name)
    optimizer = model.optimizer
    print(type(optimizer).__name__, int(optimizer.iterations), len(optimizer.variables))
"""
    said = run_python(code, tmp_path / "model.keras", tmp_path / "after.keras")
    assert said.splitlines() == [f"Adam 2 {len(model.optimizer.variables)}"] * 2


def test_under_a_loss_scale():
    keras.config.set_dtype_policy("mixed_float16")
    model = _model()
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    norm, loss = _norm_of_first_batch(model)
    monitor = callbacks.GradientMonitor()
    logs = _fit(model, monitor, epochs=1)
    reading = monitor._observer.telemetry.peek()
    np.testing.assert_allclose(reading.grad_norm[0], norm, rtol=0.05)
    np.testing.assert_allclose(reading.loss[0], loss, rtol=0.05)
    assert logs["grad_norm"][0] < 100


def test_under_a_strategy():
    with checks.mirrored(2).scope():
        model = _model()
    alone = _model()
    norm, loss = _norm_of_first_batch(alone)
    monitor = callbacks.GradientMonitor()
    _fit(model, monitor, epochs=1)
    _fit(alone, epochs=1)
    reading = monitor._observer.telemetry.peek()
    np.testing.assert_allclose(reading.grad_norm[0], norm, rtol=1e-5)
    np.testing.assert_allclose(reading.loss[0], loss, rtol=1e-5)
    checks.close(model.variables, alone.variables)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("form", [False, "step", "loop"])
def test_in_train(form):
    model, plain = _model(), _model()
    norm, _ = _norm_of_first_batch(model)
    arguments = {"epochs": 2, "batch_size": 24, "seed": 0, "verbose": 0, "jit_compile": form}
    monitor = callbacks.GradientMonitor()
    history = training.train(model, (X, Y), callbacks=[monitor], **arguments)
    training.train(plain, (X, Y), **arguments)
    checks.close(model.variables, plain.variables)
    assert len(history.history["grad_norm"]) == 2
    assert monitor._observer.telemetry.peek().cursor == 2
    assert set(_fit(model)) == {"loss"}
    assert norm > 0


def test_a_model_that_is_built_by_its_first_batch(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Dense(4), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    logs = _fit(model, callbacks.GradientMonitor(tmp_path))
    assert all(np.isfinite(logs["grad_norm"]))
    assert len(monitoring.read_record(tmp_path).norms.names) == 4


def test_a_bad_gradient_is_named():
    x = X.copy()
    x[10] = np.nan
    model = _model()
    monitor = callbacks.GradientMonitor()
    model.fit(x, Y, batch_size=8, shuffle=False, verbose=0, callbacks=[monitor])
    divergence = monitor._observer.telemetry.peek().divergence
    assert divergence.step == 2
    assert divergence.variable == model.trainable_variables[0].path
