import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab.optimizers.watching.compiled import compiled_of
from gradstab.training import probe, train
from gradstab.training.epochs import loop_of
from gradstab.training.strategy import FORMS


@pytest.fixture
def xla_is_always_tried(monkeypatch):
    monkeypatch.setattr(probe, "_MOST_SPENT", 1e9)
    monkeypatch.setattr(probe, "_SECONDS_PER_TIMING", 0.001)


def pipeline(data):
    # Opening this one anew changes the order that comes next.
    keras.utils.set_random_seed(3)
    return tf.data.Dataset.from_tensor_slices(data).shuffle(70, seed=3).batch(32)


@pytest.mark.slow
@pytest.mark.usefixtures("xla_is_always_tried")
@pytest.mark.parametrize("form", ["arrays", "pipeline"])
def test_leaves_no_trace(make_model, data, monkeypatch, same_state, form):
    monkeypatch.setattr(probe, "_LEAST_GAIN", 1e9)  # times all, takes the graph
    probed, plain = (make_model(keras.optimizers.Adam(0.01), noisy=True) for _ in range(2))
    histories = [
        train(
            model, data if form == "arrays" else pipeline(data), epochs=2,
            seed=6 if form == "arrays" else None, jit_compile=jit_compile, verbose=0,
        )
        for model, jit_compile in ((probed, "auto"), (plain, False))
    ]  # fmt: skip
    timed = histories[0].params["loop"]["milliseconds_per_step"]
    assert list(timed) == list(FORMS if form == "arrays" else FORMS[:2])
    assert all(milliseconds > 0 for milliseconds in timed.values())
    assert histories[1].params["loop"]["milliseconds_per_step"] == {}
    assert histories[0].history == histories[1].history
    assert same_state(probed, plain)


def test_a_pipeline_is_opened_once(make_model, data):
    batches = [[np.array(part) for part in batch] for batch in pipeline(data)]
    seen = []

    class Seen(keras.Sequential):
        def train_step(self, data):
            tf.py_function(lambda x: seen.append(x.numpy()), [data[0]], [])
            return super().train_step(data)

    model = Seen([keras.layers.Input((4,)), keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    train(model, pipeline(data), epochs=1, jit_compile=False, verbose=0)
    for (x, _), got in zip(batches, seen, strict=True):
        np.testing.assert_array_equal(x, got)


@pytest.mark.usefixtures("xla_is_always_tried")
def test_a_step_that_xla_refuses_runs_as_a_graph(data):
    def outside(x):
        return tf.ensure_shape(tf.numpy_function(lambda a: a, [x], tf.float32), x.shape)

    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Lambda(outside)(inputs)))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = train(model, data, epochs=1, verbose=0)
    loop = history.params["loop"]
    assert loop["form"] == "graph"
    assert "XLA can't compile" in loop["reason"]


def test_a_short_run_does_not_wait_for_xla(make_model, data):
    history = train(make_model(), data, epochs=1, verbose=0)
    loop = history.params["loop"]
    assert loop["form"] == "graph"
    assert "too short" in loop["reason"]
    assert list(loop["milliseconds_per_step"]) == ["graph"]


def test_a_second_run_of_a_model_probes_and_traces_nothing(make_model, data, monkeypatch):
    model = make_model()
    train(model, data, data, epochs=2, seed=0, verbose=0)
    loops = [loop_of(model, step, "graph") for step in ("train_step", "test_step")]
    traced = [loop.num_traces() for loop in loops]
    monkeypatch.setattr("gradstab.training.ready._trace", None)
    with monkeypatch.context() as patch:
        patch.setattr("gradstab.training.run.choose_form", None)
        history = train(model, data, data, epochs=2, seed=1, verbose=0)
    assert history.params["loop"]["reason"] == "as when this model was trained before"
    assert [loop_of(model, step, "graph") for step in ("train_step", "test_step")] == loops
    assert [loop.num_traces() for loop in loops] == traced
    history = train(model, data, epochs=200, seed=1, verbose=0, steps_per_call=3)  # longer: anew
    assert "graph" in history.params["loop"]["milliseconds_per_step"]
    model.compile(keras.optimizers.SGD(0.1), model.loss)
    assert not compiled_of(model).forms


@pytest.mark.slow
def test_a_resumed_run_keeps_its_form(make_model, data, tmp_path, monkeypatch):
    train(make_model(), data, epochs=1, run_dir=tmp_path, jit_compile="loop", verbose=0)
    monkeypatch.setattr("gradstab.training.run.choose_form", None)
    model = make_model()
    history = train(model, data, epochs=2, run_dir=tmp_path, resume=True, verbose=0)
    assert history.params["loop"]["form"] == "xla_loop"
