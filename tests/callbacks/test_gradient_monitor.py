"""What the monitor adds to logs and writes to the run record."""

import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradstab
from gradstab.callbacks import GradientMonitor
from gradstab.monitoring import read_record
from gradstab.optimizers.telemetry.telemetry import Telemetry


def make_model(optimizer, **arguments):
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile(optimizer, "mse", **arguments)
    return model


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(64, 6)).astype("float32"), rng.normal(size=(64, 1)).astype("float32")


def gradient_norms(model, x, y, batch_size, rate):
    """Norms of plain gradient descent on the mean squared error, in float64."""
    kernel, bias = (w.astype("float64") for w in model.get_weights())
    norms = []
    for start in range(0, len(x), batch_size):
        features, target = x[start : start + batch_size], y[start : start + batch_size]
        error = features @ kernel + bias - target
        d_kernel = 2 * features.T @ error / len(features)
        d_bias = 2 * error.mean(axis=0)
        norms.append(np.sqrt((d_kernel**2).sum() + (d_bias**2).sum()))
        kernel, bias = kernel - rate * d_kernel, bias - rate * d_bias
    return np.array(norms)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("steps_per_execution", [1, 4, 16])
def test_logs_and_record_hold_the_true_norms(data, tmp_path, steps_per_execution):
    optimizer = gradstab.stabilize("sgd", clip=100.0, learning_rate=0.01)
    model = make_model(optimizer, steps_per_execution=steps_per_execution)
    expected = gradient_norms(model, *data, batch_size=4, rate=0.01)
    monitor = GradientMonitor(tmp_path / "run", every_n_steps=4)
    history = model.fit(*data, batch_size=4, verbose=0, shuffle=False, callbacks=[monitor])
    assert history.history["grad_norm"] == pytest.approx([expected.mean()], rel=1e-5)
    assert history.history["grad_norm_max"] == pytest.approx([expected.max()], rel=1e-5)
    assert (history.history["clipped"], history.history["skipped"]) == ([0], [0])
    record = read_record(tmp_path / "run")
    np.testing.assert_array_equal(record.steps, [1, 4, 8, 12, 16])
    sampled = expected[[0, 3, 7, 11, 15]]
    np.testing.assert_allclose(record.column("grad_norm"), sampled, rtol=1e-5)
    last = record.norms.values[-1]
    assert np.sqrt((last**2).sum()) == pytest.approx(expected[-1], rel=1e-4)
    assert record.norms.names == tuple(v.path for v in model.trainable_variables)


def test_a_skipped_step_is_an_event_with_its_cause(data, tmp_path):
    x, y = data
    x = x.copy()
    x[9] = np.nan
    model = make_model(gradstab.stabilize("sgd", learning_rate=0.01))
    monitor = GradientMonitor(tmp_path / "run", every_n_steps=100)
    history = model.fit(x, y, batch_size=4, verbose=0, shuffle=False, callbacks=[monitor])
    assert history.history["skipped"] == [1]
    assert np.isfinite(history.history["grad_norm"][0])
    event, origin, end = read_record(tmp_path / "run").events
    assert (end.name, end.step) == ("end", 16)
    assert (origin.name, origin.step, origin.details["cause"]) == ("origin", 3, "inputs")
    assert (event.name, event.step) == ("skip", 3)
    assert event.details == {"cause": "nonfinite", "variable": model.trainable_variables[0].path}


def test_a_diverged_run_ends_with_its_cause(data, tmp_path):
    x, y = data
    model = make_model(gradstab.stabilize("sgd", max_consecutive=2))
    monitor = GradientMonitor(tmp_path / "run")
    model.fit(x * np.nan, y, batch_size=4, verbose=0, callbacks=[monitor])
    stop = read_record(tmp_path / "run").events[-1]
    assert (stop.name, stop.details["cause"]) == ("stop", "divergence")
    assert "no gradient was finite" in stop.details["message"]


def test_a_second_fit_is_another_run_in_the_same_record(data, tmp_path):
    model = make_model(gradstab.stabilize("sgd", learning_rate=0.01))
    monitor = GradientMonitor(tmp_path / "run", every_n_steps=8)
    for _ in range(2):
        model.fit(*data, batch_size=4, verbose=0, callbacks=[monitor])
    record = read_record(tmp_path / "run")
    np.testing.assert_array_equal(record.steps, [17, 24, 32])
    (first,) = record.earlier
    np.testing.assert_array_equal(first.steps, [1, 8, 16])
    assert (first.totals.steps, record.totals.steps) == (16, 16)


def test_the_model_is_left_as_it_was(data):
    model = make_model(gradstab.stabilize("sgd", learning_rate=0.01))
    before = set(vars(model))
    model.fit(*data, verbose=0)
    attributes = set(vars(model)) - before
    model.fit(*data, verbose=0, callbacks=[GradientMonitor()])
    # The compiled step goes on holding the place for a bad batch.
    assert set(vars(model)) - before == {*attributes, "gradstab_kept_batch"}
    assert "grad_norm" not in model.fit(*data, verbose=0).history
    assert "grad_norm" not in model.evaluate(*data, verbose=0, return_dict=True)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("optimizer", ["sgd", "gradstab's"])
@pytest.mark.parametrize("steps_per_execution", [1, 4])
def test_the_logs_of_a_batch_are_those_of_its_last_step(data, optimizer, steps_per_execution):
    if optimizer != "sgd":
        optimizer = gradstab.stabilize("sgd", clip=1.0, learning_rate=0.01)
    else:
        optimizer = keras.optimizers.SGD(0.01)
    model = make_model(optimizer, steps_per_execution=steps_per_execution)
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append((batch, dict(logs)))

    monitor = GradientMonitor(every_n_steps=4)
    model.fit(*data, batch_size=4, verbose=0, shuffle=False, callbacks=[Look(), monitor])
    reading = monitor._observer.telemetry.peek(sampler=monitor._observer.sampler)
    assert len(seen) == 16 // steps_per_execution
    for batch, logs in seen:
        assert set(logs) == {
            "loss", "grad_norm", "grad_norm_max", "clipped", "limited", "skipped", "update_ratio",
        }  # fmt: skip
        assert logs["grad_norm"] == logs["grad_norm_max"] == reading.grad_norm[batch]
        assert (logs["clipped"], logs["skipped"]) == (reading.clipped[batch], 0)
        latest = reading.samples.steps <= batch + 1
        assert logs["update_ratio"] == reading.samples.update_ratio[latest][-1]


def test_a_step_that_returns_no_dict_is_left_as_it_is(data):
    class Model(keras.Sequential):
        def train_step(self, data):
            return next(iter(super().train_step(data).values()))

    model = Model([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile(gradstab.stabilize("sgd"), "mse", run_eagerly=True)
    observer = GradientMonitor()
    observer.set_model(model)
    model.history = keras.callbacks.History()
    observer.on_train_begin()
    x, y = (part[:8] for part in data)
    assert np.ndim(model.train_function(iter([(x, y)]))) == 0


def test_after_an_exception_the_next_run_has_no_columns_of_ours(data):
    class Break(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise RuntimeError("broken")

    model = make_model(gradstab.stabilize("sgd", learning_rate=0.01))
    with pytest.raises(RuntimeError, match="broken"):
        model.fit(*data, verbose=0, callbacks=[GradientMonitor(), Break()])
    assert set(model.fit(*data, verbose=0).history) == {"loss"}


def test_evaluation_inside_an_epoch_has_no_columns_of_ours(data):
    seen = []

    class Evaluate(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(self.model.evaluate(*data, verbose=0, return_dict=True))

    model = make_model(gradstab.stabilize("sgd", learning_rate=0.01))
    history = model.fit(*data, verbose=0, callbacks=[Evaluate(), GradientMonitor()])
    assert set(seen[0]) == {"loss"}
    assert "grad_norm" in history.history


@pytest.mark.parametrize(("value", "kind"), [(0, ValueError), (1.5, TypeError)])
def test_every_n_steps_is_a_positive_integer(value, kind):
    with pytest.raises(kind, match="`every_n_steps` must be a positive integer"):
        GradientMonitor(every_n_steps=value)


def test_a_file_in_place_of_the_run_directory_is_refused(data, tmp_path):
    path = tmp_path / "run"
    path.write_text("something else")
    model = make_model(gradstab.stabilize("sgd"))
    with pytest.raises(OSError, match="run"):
        model.fit(*data, verbose=0, callbacks=[GradientMonitor(path)])
    assert path.read_text() == "something else"


def test_a_model_that_fit_builds_is_recorded_too(data, tmp_path):
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile(gradstab.stabilize("sgd", learning_rate=0.01), "mse")
    monitor = GradientMonitor(tmp_path / "run", every_n_steps=8)
    model.fit(*data, batch_size=4, verbose=0, callbacks=[monitor])
    record = read_record(tmp_path / "run")
    np.testing.assert_array_equal(record.steps, [1, 8, 16])
    assert record.norms.names == tuple(v.path for v in model.trainable_variables)


def test_without_matplotlib_the_record_is_written_and_the_plot_left_out(
    data, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    model = make_model(gradstab.stabilize("sgd", learning_rate=0.01))
    monitor = GradientMonitor(tmp_path / "run", every_n_steps=8)
    model.fit(*data, batch_size=4, verbose=0, callbacks=[monitor])
    assert len(read_record(tmp_path / "run").steps) == 3
    assert not (tmp_path / "run" / "gradient_norm.png").exists()


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("optimizer", ["sgd", "gradstab's"])
def test_a_long_run_gets_a_function_without_sampler_and_samples_the_same(
    data, optimizer, monkeypatch
):
    monkeypatch.setattr("gradstab.optimizers.watching.watched._CALLS_BEFORE_ANOTHER", 10)
    traced = []

    class Model(keras.Sequential):
        def train_step(self, data):
            traced.append(len(seen))
            return super().train_step(data)

    seen = []
    look = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(batch))
    model = Model([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile("sgd" if optimizer == "sgd" else gradstab.stabilize("sgd"), "mse")
    monitor = GradientMonitor(every_n_steps=4)
    model.fit(*data, batch_size=4, epochs=2, verbose=0, callbacks=[monitor, look])
    assert len(seen) == 32
    assert traced == [0, 10]
    reading = monitor._observer.telemetry.peek(sampler=monitor._observer.sampler)
    assert reading.samples.steps.tolist() == [1, *range(4, 33, 4)]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("optimizer", ["sgd", "gradstab's"])
def test_where_a_call_is_not_one_step_samples_are_missed_before_the_first_look_only(
    data, optimizer
):
    class Twice(keras.Sequential):
        def train_step(self, data):
            super().train_step(data)
            return super().train_step(data)

    model = Twice([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile("sgd" if optimizer == "sgd" else gradstab.stabilize("sgd"), "mse")
    monitor = GradientMonitor(every_n_steps=4)
    model.fit(*data, batch_size=4, verbose=0, callbacks=[monitor])
    reading = monitor._observer.telemetry.peek(sampler=monitor._observer.sampler)
    assert reading.cursor == 32
    assert set(range(8, 33, 4)) <= set(reading.samples.steps.tolist())
    # Once that is seen, steps that are not due are not sampled either: 9 of 32 are due.
    count, *_ = monitor._observer.sampler.waiting()
    assert 8 <= int(count) < 16


def test_between_two_looks_a_second_apart_nothing_is_lost(data, tmp_path, monkeypatch):
    clock = types.SimpleNamespace(monotonic=lambda: 0.0)
    monkeypatch.setattr("gradstab.callbacks.pace.time", clock)
    looks = []
    peek = Telemetry.peek
    monkeypatch.setattr(Telemetry, "peek", lambda *a, **k: looks.append(1) or peek(*a, **k))
    model = make_model(gradstab.stabilize("sgd", learning_rate=0.01))
    dataset = tf.data.Dataset.from_tensor_slices(data).batch(4).repeat()
    monitor = GradientMonitor(tmp_path / "run", every_n_steps=2)
    model.fit(dataset, steps_per_epoch=400, verbose=0, shuffle=False, callbacks=[monitor])
    record = read_record(tmp_path / "run")
    np.testing.assert_array_equal(record.steps, [1, *range(2, 401, 2)])
    assert record.norms.values.shape[0] == 201
    assert all(event.name != "missed" for event in record.events)
    # At the beginning and the end, and whenever half of what the device holds is full.
    # One more is for the line on the console.
    assert len(looks) <= 2 + 2 + 400 // 64 + 2 + 1
