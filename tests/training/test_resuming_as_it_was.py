"""Resumed runs: undisturbed where the first step is skipped; refused or told where they differ."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab import schedules, stabilize
from gradstab.data import from_arrays
from gradstab.regularizers import L2
from gradstab.training import train
from gradstab.training.fingerprint import fingerprint_of

X = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
Y = X[:, :1].copy()
ARGUMENTS = {"seed": 0, "batch_size": 8, "jit_compile": False, "verbose": 0}


class StopAt(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


def make(rate=0.01, loss="mse", dropout=0.1, l2=0.1, units=4, optimizer=None):
    keras.utils.set_random_seed(1)
    layers = [
        keras.layers.Dense(units, "tanh", kernel_regularizer=L2(l2)),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(dropout),
        keras.layers.Dense(1),
    ]
    model = keras.Sequential([keras.Input((6,)), *layers])
    model.compile(optimizer or stabilize("adam", learning_rate=rate), loss)
    return model


@pytest.mark.slow
def test_undisturbed_where_the_first_step_after_resuming_is_skipped(tmp_path, same_state):
    """Statistics fell back to those with which the process began: .0508 where .0324 was right."""
    x = X.copy()
    x[np.random.default_rng([0, 2]).permutation(64)[0]] = np.nan  # in the first batch of epoch 3
    whole, resumed = make(), make()
    history = train(whole, (x, Y), epochs=4, run_dir=tmp_path / "whole", **ARGUMENTS)
    with pytest.raises(KeyboardInterrupt):
        train(make(), (x, Y), epochs=4, run_dir=tmp_path / "a", callbacks=[StopAt(2)], **ARGUMENTS)
    again = train(resumed, (x, Y), epochs=4, run_dir=tmp_path / "a", resume=True, **ARGUMENTS)
    assert resumed.optimizer.telemetry.peek().total_skipped == 4
    assert same_state(whole, resumed)
    assert again.history == history.history


@pytest.mark.slow
def test_undisturbed_under_a_backup_of_keras(tmp_path):
    """It loads weights when training begins, after the optimizer came to know the model."""
    x = X.copy()
    x[np.random.default_rng([0, 2]).permutation(64)[0]] = np.nan
    whole, resumed = make(dropout=0.0), make(dropout=0.0)
    train(whole, (x, Y), epochs=3, **ARGUMENTS)
    backup = keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)
    with pytest.raises(KeyboardInterrupt):
        train(make(dropout=0.0), (x, Y), epochs=3, callbacks=[backup, StopAt(2)], **ARGUMENTS)
    backup = keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)
    train(resumed, (x, Y), epochs=3, callbacks=[backup], **ARGUMENTS)
    for one, other in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def scheduled(steps):
    return stabilize("adam", learning_rate=keras.optimizers.schedules.CosineDecay(0.01, steps))


def adjustable(steps):
    cosine = keras.optimizers.schedules.CosineDecay(0.01, steps)
    return stabilize("adam", learning_rate=schedules.Adjustable(cosine))


def another_loss(y, prediction):
    return keras.ops.mean(keras.ops.abs(y - prediction), axis=-1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("begun", "resumed", "message"),
    [
        ({"loss": "mse"}, {"loss": "mae"}, "model's loss was 'mse', is 'mae'"),
        ({"loss": "mse"}, {"loss": another_loss}, "is 'another_loss'"),
        (
            {"loss": keras.losses.Huber(delta=1.0)},
            {"loss": keras.losses.Huber(delta=2.0)},
            "'delta': 2.0",
        ),
        ({"dropout": 0.1}, {"dropout": 0.5}, "rate of layer 2, Dropout, was 0.1, is 0.5"),
        ({"optimizer": lambda: scheduled(10)}, {"optimizer": lambda: adjustable(10)}, "schedules"),
        ({}, {"optimizer": lambda: scheduled(20)}, "schedules"),
    ],
)
def test_another_model_is_refused(tmp_path, begun, resumed, message):
    def made(arguments):
        return make(**{k: v() if k == "optimizer" else v for k, v in arguments.items()})

    train(made(begun), (X, Y), epochs=1, run_dir=tmp_path, **ARGUMENTS)
    with pytest.raises(ValueError, match="needs the arguments") as raised:
        train(made(resumed), (X, Y), epochs=2, run_dir=tmp_path, resume=True, **ARGUMENTS)
    assert message in str(raised.value)
    # The same again is taken.
    history = train(made(begun), (X, Y), epochs=2, run_dir=tmp_path, resume=True, **ARGUMENTS)
    assert len(history.history["loss"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [scheduled, adjustable])
def test_another_schedule_is_refused_unless_there_are_more_epochs(tmp_path, optimizer):
    arguments = {"run_dir": tmp_path, **ARGUMENTS}
    with pytest.raises(KeyboardInterrupt):
        train(make(optimizer=optimizer(16)), (X, Y), epochs=2, callbacks=[StopAt(1)], **arguments)
    with pytest.raises(ValueError, match="schedules"):
        train(make(optimizer=optimizer(32)), (X, Y), epochs=2, resume=True, **arguments)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        history = train(make(optimizer=optimizer(32)), (X, Y), epochs=4, resume=True, **arguments)
    assert any("schedule of the learning rate changes" in str(each.message) for each in caught)
    assert len(history.history["loss"]) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("begun", "resumed", "message"),
    [
        ({"rate": 0.01}, {"rate": 0.1}, "another learning rate: it was [0.01], is [0.1]"),
        ({"l2": 0.1}, {"l2": 0.2}, "another coefficients: it was [0.1], is [0.2]"),
    ],
)
def test_what_a_run_changes_itself_is_told(tmp_path, begun, resumed, message):
    train(make(**begun), (X, Y), epochs=1, run_dir=tmp_path, **ARGUMENTS)
    model = make(**resumed)
    for epochs in (2, 3):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            train(model, (X, Y), epochs=epochs, run_dir=tmp_path, resume=True, **ARGUMENTS)
        said = [str(warning.message) for warning in caught if warning.category is UserWarning]
        # The model has taken over, for the second time, what the run began with.
        assert [message in each for each in said] == ([True] if epochs == 2 else [])


def datasets(seed):
    return from_arrays(X, (Y[:, 0] > 0).astype(int), batch_size=8, seed=seed).train


def plain_pipeline(x, size):
    """One that no function makes for each epoch, in an order of its own each time."""
    return tf.data.Dataset.from_tensor_slices((x, Y)).shuffle(64).batch(size)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("begun", "resumed"),
    [
        (lambda: (X, Y), lambda: (X + 1, Y)),
        (lambda: (X, Y), lambda: (X, -Y)),
        (lambda: datasets(0), lambda: datasets(1)),
        (lambda: plain_pipeline(X, 8), lambda: plain_pipeline(X, 4)),
        (lambda: plain_pipeline(X, 8), lambda: plain_pipeline(X.astype("float16"), 8)),
    ],
    ids=["inputs", "targets", "pipeline", "other batches", "other dtypes"],
)
def test_other_data_are_refused(tmp_path, begun, resumed):
    train(make(), begun(), epochs=1, run_dir=tmp_path, **ARGUMENTS)
    with pytest.raises(ValueError, match=r"`train_data` was .* is "):
        train(make(), resumed(), epochs=2, run_dir=tmp_path, resume=True, **ARGUMENTS)
    with pytest.raises(ValueError, match=r"`train_data` was|monitor was|`validation_data`"):
        train(make(), resumed(), (X, Y), epochs=2, run_dir=tmp_path, resume=True, **ARGUMENTS)
    train(make(), begun(), epochs=2, run_dir=tmp_path, resume=True, **ARGUMENTS)


@pytest.mark.slow
def test_a_pipeline_that_draws_at_random_is_not_taken_for_another(tmp_path):
    def noisy(epoch):
        batches = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
        return batches.map(lambda x, y: (x + tf.random.normal(tf.shape(x)), y))

    data = noisy(0)
    data.for_epoch = noisy
    train(make(), data, epochs=1, run_dir=tmp_path, **ARGUMENTS)
    train(make(), data, epochs=2, run_dir=tmp_path, resume=True, **ARGUMENTS)


def test_the_same_bytes_in_another_shape_or_dtype_are_other_data():
    numbers = np.arange(12, dtype="int32")
    forms = [numbers, numbers.reshape(3, 4), numbers.reshape(4, 3), numbers.view("float32")]
    prints = [fingerprint_of(tf.constant(form)) for form in forms]
    assert len({*prints}) == len(forms)
    assert fingerprint_of(tf.constant(numbers)) == prints[0]
