"""What is compiled for one run of a watched model serves the next, and goes where it is stale."""

import gc
import json
import weakref

import common_checks as checks
import keras
import numpy as np
import pytest
import tensorflow as tf

import gradstab
from gradstab.callbacks import GradientMonitor
from gradstab.monitoring import read_record
from gradstab.optimizers.watching.compiled import compiled_of
from gradstab.recovery.step_losses import StepLosses
from gradstab.training import train

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(24, 3)).astype("float32")
Y = DRAW.normal(size=(24, 1)).astype("float32")
OPTIMIZERS = {
    "plain": lambda: keras.optimizers.Adam(0.01),
    "ours": lambda: gradstab.stabilize(keras.optimizers.Adam(0.01), clip=0.5),
}


class Counting(keras.layers.Layer):
    """Counts how often its call is traced."""

    traced = 0

    def call(self, inputs):
        self.traced += tf.is_symbolic_tensor(inputs)
        return inputs


def make(optimizer="plain", **arguments):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            Counting(),
            keras.layers.Dense(4, "tanh", name="hidden"),
            keras.layers.Dense(1, name="output"),
        ],
        name="net",
    )
    model.compile(OPTIMIZERS[optimizer](), "mse", **arguments)
    return model


def run(model, *callbacks, by="fit", batch_size=8, epochs=2, **arguments):
    """Train, and return how often the model was traced, and the history."""
    arguments = {"batch_size": batch_size, "epochs": epochs, "verbose": 0} | arguments
    keras.utils.set_random_seed(1)
    model.layers[0].traced = 0
    if by == "fit":
        history = model.fit(X, Y, callbacks=list(callbacks), shuffle=False, **arguments)
    else:
        history = train(model, X, Y, callbacks=list(callbacks), seed=1, **arguments)
    return model.layers[0].traced, history.history


def lines(folder):
    """Return what a record tells, without clock times."""
    told = map(json.loads, (folder / "record.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in ("time", "started")} for line in told]


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("is_new", [False, True], ids=["same monitor", "another monitor"])
@pytest.mark.parametrize("by", ["fit", "train"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_second_run_traces_nothing_and_is_what_it_would_have_been(
    optimizer, by, is_new, tmp_path
):
    kept, anew = make(optimizer), make(optimizer)
    found = []
    for model, folder in ((kept, tmp_path / "kept"), (anew, tmp_path / "anew")):
        monitor = GradientMonitor(folder, every_n_steps=2)
        first, _ = run(model, monitor, by=by)
        assert first > 0
        if model is anew:
            model.train_function = None
        second, history = run(
            model, GradientMonitor(folder, every_n_steps=2) if is_new else monitor, by=by
        )
        assert (second == 0) == (model is kept)
        found.append(([weight.tolist() for weight in model.get_weights()], history))
    assert found[0] == found[1]
    assert lines(tmp_path / "kept") == lines(tmp_path / "anew")
    assert len(read_record(tmp_path / "kept").earlier) == 1


def test_under_xla_too():
    model = make("ours", jit_compile=True)
    assert run(model, GradientMonitor())[0] > 0
    assert run(model, GradientMonitor())[0] == 0


@pytest.mark.slow
def test_on_two_replicas_too():
    with checks.mirrored(2).scope():
        model = make("ours")
    first, history = run(model, GradientMonitor(every_n_steps=2))
    second, again = run(model, GradientMonitor(every_n_steps=2))
    assert first > 0
    assert second == 0
    assert set(history) == set(again)
    assert np.isfinite(again["update_ratio"]).all()


def test_two_monitors_in_one_run_get_what_they_had():
    model = make()
    for number in range(3):
        watching = [GradientMonitor(every_n_steps=2), GradientMonitor(every_n_steps=2)]
        traced, history = run(model, *watching)
        assert (traced > 0) == (number == 0)
        assert np.isfinite(history["update_ratio"]).all()
        cursors = [each._observer.telemetry.peek().cursor for each in watching]
        assert cursors == [6, 6]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("by", ["fit", "train"])
def test_what_changes_is_traced_anew_and_right(by):
    model = make()
    run(model, GradientMonitor(), by=by)
    state = model.get_weights()
    for loss, optimizer in (("mae", "plain"), ("mse", "ours")):
        fresh = make(optimizer)
        for each in (model, fresh):
            each.set_weights(state)
            each.compile(OPTIMIZERS[optimizer](), loss)
        (traced, history), (_, expected) = (
            run(each, GradientMonitor(), by=by) for each in (model, fresh)
        )
        assert traced > 0
        assert history == expected
    assert run(model, GradientMonitor(), by=by, batch_size=6)[0] > 0
    assert run(model, GradientMonitor(every_n_steps=3), by=by)[0] > 0
    assert run(model, GradientMonitor(probe=(X[:4], Y[:4])), by=by)[0] > 0


def test_a_monitor_whose_observer_went_to_another_gets_one_that_counts_its_own_steps(tmp_path):
    model, first = make(), GradientMonitor(tmp_path / "first")
    run(model, first)
    run(model, GradientMonitor(tmp_path / "second"))
    traced, _ = run(model, first, epochs=3)
    assert traced == 0
    assert first._observer.telemetry.peek().cursor == 9
    assert [epoch.step for epoch in read_record(tmp_path / "first").epochs] == [3, 6, 9]


def test_who_comes_to_hear_the_losses_hears_them_in_a_step_that_was_kept():
    class Listening(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.losses = StepLosses(self.model)
            self.losses.attach()

        def on_train_end(self, logs=None):
            self.heard = self.losses.read()
            self.losses.detach()

    model, monitor, listening = make(), GradientMonitor(), Listening()
    run(model, monitor)
    run(model, monitor, listening)
    assert len(listening.heard) == 6
    assert monitor._observer.telemetry.peek().cursor == 12
    assert run(model, monitor)[0] > 0  # Without those who hear.


@pytest.mark.slow
def test_few_observers_wait():
    model = make()
    for number in range(2, 9):
        run(model, GradientMonitor(every_n_steps=number), epochs=1, by="train")
    compiled = compiled_of(model)
    assert len(compiled._observers) == 4
    assert len(compiled._watched) == 4
    assert len(compiled.loops) == 4
    assert run(model, GradientMonitor(every_n_steps=8), epochs=1, by="train")[0] == 0
    assert run(model, GradientMonitor(every_n_steps=2), epochs=1, by="train")[0] > 0


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("by", ["fit", "train"])
def test_a_model_goes_with_all_that_was_compiled(by):
    model = make("ours")
    run(model, GradientMonitor(activations=True, probe=(X[:4], Y[:4])), by=by)
    gone = weakref.ref(model)
    del model
    keras.backend.clear_session()
    gc.collect()
    assert gone() is None
