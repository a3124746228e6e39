"""What the monitor tells of layers and of linearity, against numbers computed by hand."""

import json

import common_checks as checks
import keras
import numpy as np
import pytest
import tensorflow as tf

import gradstab
from gradstab.callbacks import GradientMonitor
from gradstab.monitoring import read_record
from gradstab.optimizers.telemetry.activations import Activations

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(16, 3)).astype("float32")
Y = DRAW.normal(size=(16, 1)).astype("float32")
GRAPH, XLA, EAGER = {"jit_compile": False}, {"jit_compile": True}, {"run_eagerly": True}


def _model(optimizer, loss="mse", **arguments):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(8, "relu", name="half_dead"),
            keras.layers.Dense(4, "tanh", name="saturated"),
            keras.layers.Dropout(0.0),
            keras.layers.Dense(1, name="head"),
        ]
    )
    dead = model.layers[0]
    kernel, bias = dead.get_weights()
    kernel[:, :2], bias[:2] = 0.0, -1.0  # two units of eight put out nothing
    dead.set_weights([kernel, bias])
    model.layers[1].kernel.assign(model.layers[1].kernel * 10.0)
    model.compile(optimizer, loss, **arguments)
    return model


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("ours", "form"),
    [(True, GRAPH), (True, EAGER), (False, GRAPH), (False, XLA), (False, EAGER)],
    ids=str,
)
def test_activations(ours, form, tmp_path):
    sgd = keras.optimizers.SGD(0.0)
    model = _model(gradstab.stabilize(sgd) if ours else sgd, **form)
    outputs = keras.Model(model.inputs[0], [layer.output for layer in model.layers])(X)
    hidden, bounded, _, head = (output.numpy().astype("float64") for output in outputs)
    monitor = GradientMonitor(tmp_path, activations=True)
    model.fit(X, Y, batch_size=16, verbose=0, callbacks=[monitor])
    record = read_record(tmp_path)
    found = {name: record.per_layer(f"activation_{name}") for name in
             ("mean", "deviation", "saturated", "dead")}  # fmt: skip
    names = found["mean"].names
    assert [name.rpartition("/")[2] for name in names] == ["half_dead", "saturated", "head"]
    values = {name: sample.values[0] for name, sample in found.items()}
    layers = (hidden, bounded, head)
    np.testing.assert_allclose(values["mean"], [v.mean() for v in layers], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(values["deviation"], [v.std() for v in layers], rtol=1e-3)
    np.testing.assert_array_equal(values["dead"], [(hidden == 0).all(axis=0).mean(), 0, 0])
    assert values["dead"][0] >= 0.25
    share = (np.abs(bounded) > 0.98).mean()
    np.testing.assert_allclose(values["saturated"], [np.nan, share, np.nan], rtol=1e-4)
    assert 0.2 < share < 1
    for layer in model.layers:
        assert "call" not in vars(layer)


def test_a_unit_of_a_convolution_is_a_channel():
    model = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Conv2D(3, 3, activation="relu", name="conv")]
    )
    kernel, _ = model.layers[0].get_weights()
    model.layers[0].set_weights([np.abs(kernel), np.array([1.0, -99.0, 1.0], "float32")])
    seen = Activations(model)
    seen.begin()
    with seen.attached():
        model(np.ones((2, 4, 4, 1), "float32"))
        with seen.paused():
            model(np.zeros((2, 4, 4, 1), "float32"))
    assert seen.statistics().numpy()[3] == pytest.approx(1 / 3)


class Repeated(keras.layers.Layer):
    """Runs a layer in a loop of its own."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3, name="looped")

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return tf.while_loop(lambda i, _: i < 2, lambda i, x: (i + 1, self.dense(x)), (0, x))[1]


def test_a_layer_inside_a_loop_is_not_guessed(tmp_path):
    model = keras.Sequential([keras.Input((3,)), Repeated(), keras.layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=False)
    monitor = GradientMonitor(tmp_path, activations=True)
    model.fit(X, Y, verbose=0, callbacks=[monitor])
    means = read_record(tmp_path).per_layer("activation_mean")
    assert len(means.names) == 3
    for name, value in zip(means.names, means.values[0], strict=True):
        assert np.isnan(value) == name.endswith("looped"), name


def test_activations_of_a_model_that_is_not_built_are_refused_aloud():
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    monitor = GradientMonitor(activations=True)
    monitor.set_model(model)
    model.history = keras.callbacks.History()
    with pytest.warns(UserWarning, match="`activations` needs a built model"):
        monitor.on_train_begin()


def _loss(model, x, y):
    return float(tf.reduce_mean((model(x) - y) ** 2))


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("ours", "form"), [(True, GRAPH), (True, XLA), (False, GRAPH), (False, EAGER)], ids=str
)
def test_linearity_with_a_probe_is_that_of_a_step_by_hand(ours, form, tmp_path):
    probe_x, probe_y = X[8:] + 0.5, Y[8:]
    sgd = keras.optimizers.SGD(0.05)
    model = _model(gradstab.stabilize(sgd, clip=None) if ours else sgd, **form)
    before = [w.numpy() for w in model.trainable_variables]
    loss_before = _loss(model, probe_x, probe_y)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(probe_x) - probe_y) ** 2)
    gradients = tape.gradient(loss, model.trainable_variables)
    monitor = GradientMonitor(tmp_path, probe=(probe_x, probe_y))
    history = model.fit(X[:8], Y[:8], batch_size=8, shuffle=False, verbose=0, callbacks=[monitor])
    updates = [w.numpy() - b for w, b in zip(model.trainable_variables, before, strict=True)]
    predicted = sum(float(tf.reduce_sum(g * u)) for g, u in zip(gradients, updates, strict=True))
    record = read_record(tmp_path)
    actual = _loss(model, probe_x, probe_y) - loss_before
    assert record.column("linearity_probe_predicted")[0] == pytest.approx(predicted, rel=1e-3)
    assert record.column("linearity_actual")[0] == pytest.approx(actual, rel=1e-3)
    assert set(history.history) >= {"loss"}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("rate", "is_linear"), [(1e-4, True), (3.0, False)])
def test_small_steps_are_linear_and_large_ones_are_not(rate, is_linear, tmp_path):
    model = _model(keras.optimizers.SGD(rate))
    monitor = GradientMonitor(tmp_path, every_n_steps=1, probe=(X, Y))
    model.fit(X, Y, batch_size=16, epochs=1, verbose=0, callbacks=[monitor])
    record = read_record(tmp_path)
    predicted = record.column("linearity_predicted")
    np.testing.assert_allclose(record.column("linearity_probe_predicted"), predicted, rtol=1e-3)
    ratio = record.column("linearity_actual")[0] / predicted[0]
    assert (abs(ratio - 1) < 0.05) == is_linear


@pytest.mark.slow
def test_a_probe_leaves_the_run_as_it_is():
    """Metrics, BatchNorm, losses by output and the weights: all as in a run without one.

    Regression: Keras gives a regularizer `None` for a weight in a stateless scope that lacks it.
    """

    def run(**arguments):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((3,))
        hidden = keras.layers.BatchNormalization()(
            keras.layers.Dense(4, "relu", kernel_regularizer="l2")(inputs)
        )
        outputs = [keras.layers.Dense(1, name=name)(hidden) for name in ("a", "b")]
        model = keras.Model(inputs, outputs)
        model.compile(gradstab.stabilize("adam"), ["mse", "mae"], metrics=[["mae"], ["mse"]])
        history = model.fit(
            X, [Y, Y], batch_size=4, epochs=2, shuffle=False, verbose=0,
            callbacks=[GradientMonitor(every_n_steps=1, **arguments)],
        )  # fmt: skip
        return model, history.history

    (plain, logs), (probed, probed_logs) = run(), run(probe=(X, [Y, Y]), activations=True)
    checks.close(probed.variables, plain.variables)
    assert logs.keys() == probed_logs.keys()
    for name, values in logs.items():
        np.testing.assert_allclose(probed_logs[name], values, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("probe", [X, (X,), [X, Y]])
def test_a_probe_is_a_batch(probe):
    with pytest.raises(ValueError, match="`probe` must be a batch"):
        GradientMonitor(probe=probe)


def test_tensorboard_gets_scalars_histograms_and_a_heat_map(tmp_path):
    pytest.importorskip("tensorboard", reason='needs pip install "gradstab[tensorboard]"')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = _model(gradstab.stabilize("sgd", clip=0.1))
    monitor = GradientMonitor(tmp_path / "run", tmp_path / "events", 2, activations=True)
    model.fit(X, Y, batch_size=4, epochs=2, verbose=0, callbacks=[monitor])
    events = EventAccumulator(str(tmp_path / "events"), size_guidance={"tensors": 0})
    events.Reload()
    record = read_record(tmp_path / "run")
    tags = set(events.Tags()["tensors"])

    def series(tag):
        return [(event.step, tf.make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)]

    assert [step for step, _ in series("gradients/grad_norm")] == [1, 2, 4, 6, 8]
    norms = [float(value) for _, value in series("gradients/grad_norm")]
    np.testing.assert_allclose(norms, record.column("grad_norm"), rtol=1e-5)
    kernel = model.trainable_variables[0].path
    bins = series(f"gradient_histograms/{kernel}")[0][1]
    assert bins.shape == (30, 3)
    assert bins[:, 2].sum() == 24
    assert {f"grad_norm/{kernel}", f"update_ratio/{kernel}", "gradients/layers"} <= tags
    assert any(tag.startswith("activation_dead/") for tag in tags)
    assert series("gradients/layers")[-1][1][2].startswith(b"\x89PNG")


def test_without_tensorboard_the_extra_is_named_before_training(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("tensorboard.")]:
        monkeypatch.setitem(sys.modules, name, None)
    model = _model("sgd")
    before = model.get_weights()
    with pytest.raises(ImportError, match=r"gradstab\[tensorboard\]"):
        model.fit(X, Y, verbose=0, callbacks=[GradientMonitor(tensorboard_dir=tmp_path)])
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.slow
def test_ten_thousand_steps_of_500_variables(tmp_path):
    """At the default cadence: under 20 MB, and read in under two seconds."""
    import time

    from gradstab.monitoring import RecordWriter
    from gradstab.optimizers.telemetry.samples import QUANTITIES

    draw = np.random.default_rng(0)
    names = [f"model/block_{place // 2}/dense/{'kernel' if place % 2 else 'bias'}" for place in
             range(500)]  # fmt: skip
    with RecordWriter(tmp_path, variables=names) as writer:
        for step in [1, *range(50, 10_001, 50)]:
            scalars = dict.fromkeys(
                ("loss", "grad_norm", "grad_norm_after", "update_ratio", "linearity_predicted"),
                1.2345678,
            )
            lists = {
                name: draw.normal(size=500).astype("float32") * 10.0 ** draw.integers(-9, 3)
                for name in (*QUANTITIES, "update_ratio")
            }
            writer.step(step, scalars, lists)
    size = (tmp_path / "record.jsonl").stat().st_size
    seconds = []
    for _ in range(3):
        start = time.process_time()
        record = read_record(tmp_path)
        seconds.append(time.process_time() - start)
    assert record.norms.values.shape == (201, 500)
    assert size < 20e6, size
    assert min(seconds) < 2, seconds
    header, _, _ = (tmp_path / "record.jsonl").read_text().partition("\n")
    assert json.loads(header)["schema"] == 1
