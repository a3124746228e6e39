"""Steps that fail on what is not finite: the guard names batch, example, array and row."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradstab
from gradstab.callbacks import DivergenceGuard
from gradstab.recovery.bad_batches import bad_examples_of

BATCH, STEPS = 8, 10


def data():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(BATCH * STEPS, 4)).astype("float32")
    y = x[:, :1].copy()
    x[27, 2], y[55] = np.nan, np.inf
    return x, y


def make_model(ours):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    adam = keras.optimizers.Adam(0.05)
    model.compile(gradstab.stabilize(adam) if ours else adam, "mse")
    return model


def run(how, model, given, guard, epochs=4):
    if how == "fit":
        model.fit(given, epochs=epochs, verbose=0, shuffle=False, callbacks=[guard])
        return
    arguments = {"epochs": epochs, "batch_size": BATCH, "verbose": 0, "callbacks": [guard]}
    gradstab.training.train(model, given, seed=0, jit_compile=False, **arguments)


@pytest.mark.filterwarnings("ignore:.*were limited or skipped:UserWarning")
@pytest.mark.parametrize(
    ("how", "ours"), [("fit", True), ("fit", False), ("train", True), ("train", False)]
)
def test_a_batch_that_is_bad_each_time_is_named_once_and_the_run_goes_on(how, ours, capsys):
    x, y = data()
    given = (x, y)
    if how == "fit":
        given = tf.data.Dataset.from_tensor_slices(given).batch(BATCH)
    guard = DivergenceGuard("recover", snapshot_every_n_steps=5)
    model = make_model(ours)
    run(how, model, given, guard)
    assert guard.verdict is None
    assert all(np.isfinite(w).all() for w in model.get_weights())
    if how == "fit":
        assert {(bad.batch, bad.examples) for bad in guard.bad_batches} == {
            (3, ((3, "inputs"),)),
            (6, ((7, "targets"),)),
        }
    else:
        assert {bad.rows for bad in guard.bad_batches} == {(27,), (55,)}
        assert {part for bad in guard.bad_batches for _, part in bad.examples} == {
            "inputs",
            "targets",
        }
    told = capsys.readouterr().out
    assert told.count("is not finite: ") == 2
    assert "gradstab.data.BadExamples" in told


@pytest.mark.filterwarnings("ignore:.*were limited or skipped:UserWarning")
def test_a_pipeline_that_can_be_opened_again_shows_the_batch_at_once():
    x, y = data()

    def batches(epoch):
        dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
        return dataset.shuffle(STEPS, seed=epoch)

    given = batches(0)
    given.for_epoch = batches
    guard = DivergenceGuard("recover", snapshot_every_n_steps=5, verbose=False)
    run("train", make_model(True), given, guard, epochs=1)
    assert {bad.examples for bad in guard.bad_batches} == {((3, "inputs"),), ((7, "targets"),)}


@pytest.mark.filterwarnings("ignore:.*were limited or skipped:UserWarning")
def test_in_another_order_in_each_epoch_nothing_wrong_is_named():
    x, y = data()
    given = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH).shuffle(STEPS, seed=3)
    guard = DivergenceGuard("recover", snapshot_every_n_steps=5, verbose=False)
    run("fit", make_model(True), given, guard)
    for bad in guard.bad_batches:  # By luck a bad batch may come again at the same place.
        assert bad.examples in (((3, "inputs"),), ((7, "targets"),))


def test_what_of_a_batch_is_not_finite():
    x = {"a": np.arange(3), "b": np.array([[1.0, 2.0], [np.nan, 1.0], [1.0, np.inf]])}
    weights = np.array([1.0, np.nan, 1.0])
    assert bad_examples_of((x, np.zeros(3), weights)) == [
        (1, "inputs 1"),
        (1, "weights"),
        (2, "inputs 1"),
    ]
    assert bad_examples_of((np.zeros((3, 2)), np.array(1.0))) == []
