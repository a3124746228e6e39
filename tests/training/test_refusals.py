import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab.training import train
from gradstab.training.hooks import steps_between_hooks

EMPTY = tf.data.Dataset.from_tensor_slices((np.ones((0, 4)), np.ones((0,)))).batch(2)
ENDLESS = tf.data.Dataset.from_tensors((np.ones((2, 4)), np.ones(2))).repeat()
ARRAYS = (np.ones((8, 4)), np.ones(8))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "`epochs` must be a positive integer. Received: epochs=0"),
        ({"epochs": 1.5}, TypeError, "epochs=1.5"),
        ({"batch_size": 0}, ValueError, "batch_size=0"),
        ({"seed": -1}, ValueError, "seed=-1"),
        ({"jit_compile": "fast"}, ValueError, "`jit_compile` must be one of"),
        ({"steps_per_call": 0}, ValueError, "Or leave it at 'auto'"),
        ({"verbose": 3}, ValueError, "`verbose` must be one of"),
        ({"monitor": "val_loss"}, ValueError, "`monitor` needs `validation_data`"),
        ({"monitor": "score"}, ValueError, "`monitor_mode` must be 'min' or 'max'"),
        ({"early_stopping_patience": 0}, ValueError, "early_stopping_patience=0"),
        ({"resume": True, "run_dir": None}, ValueError, "needs the run's directory"),
        ({"steps_per_epoch": 2}, ValueError, "`steps_per_epoch` goes with a tf.data.Dataset"),
        ({"train_data": EMPTY}, ValueError, "`train_data` must yield at least one batch"),
        ({"train_data": ENDLESS}, ValueError, "Pass `steps_per_epoch`"),
        ({"validation_data": ENDLESS}, ValueError, "`validation_data` must end"),
        ({"train_data": (np.ones((3, 4)), np.ones(2))}, ValueError, "lengths 2, 3"),
        ({"train_data": (np.ones((0, 4)), np.ones(0))}, ValueError, "at least one example"),
        ({"train_data": ([[1.0]], [1.0])}, TypeError, "NumPy arrays or tensors"),
        ({"train_data": iter([])}, ValueError, "must yield at least one batch"),
        ({"train_data": ENDLESS.take(2), "jit_compile": "loop"}, ValueError, "needs arrays"),
    ],
)
def test_refuses_before_anything_is_touched(make_model, tmp_path, arguments, error, message):
    model = make_model()
    before = [weight.numpy().copy() for weight in model.weights]
    directory = tmp_path / "run"
    given = {"train_data": ARRAYS, "epochs": 1, "run_dir": directory, "verbose": 0, **arguments}
    with pytest.raises(error) as raised:
        train(model, given.pop("train_data"), **given)
    assert message in str(raised.value)
    assert not directory.exists()
    assert not model.optimizer.built
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_an_empty_pipeline_of_unknown_length_leaves_no_directory(make_model, tmp_path):
    empty = tf.data.Dataset.from_tensor_slices(ARRAYS).filter(lambda x, y: y > 5.0).batch(2)
    with pytest.raises(ValueError, match="must yield at least one batch"):
        train(make_model(), empty, epochs=1, run_dir=tmp_path / "run", verbose=0)
    assert not any(tmp_path.iterdir())


def test_refuses_what_is_no_compiled_model(tmp_path):
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="must be compiled"):
        train(model, ARRAYS, epochs=1)
    with pytest.raises(TypeError, match=r"must be a keras\.Model"):
        train(object(), ARRAYS, epochs=1)


def test_refuses_directories(make_model, tmp_path):
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(ValueError, match="must be a directory that can be written to"):
        train(make_model(), ARRAYS, epochs=1, run_dir=tmp_path / "file" / "run", verbose=0)
    train(make_model(), ARRAYS, epochs=1, run_dir=tmp_path / "run", verbose=0)
    with pytest.raises(ValueError, match="Pass `resume=True`"):
        train(make_model(), ARRAYS, epochs=2, run_dir=tmp_path / "run", verbose=0)


def test_refuses_to_resume_another_run(make_model, tmp_path):
    arguments = {"epochs": 1, "run_dir": tmp_path, "verbose": 0}
    train(make_model(), ARRAYS, seed=1, **arguments)
    arguments |= {"resume": True, "epochs": 2}
    other = keras.optimizers.SGD(0.1, momentum=0.5)
    with pytest.raises(ValueError, match=r"momentum': 0\.9.*momentum': 0\.5"):
        train(make_model(other), ARRAYS, seed=1, **arguments)
    with pytest.raises(ValueError, match="seed was 1, is 2; batches per epoch was 1, is 4"):
        train(make_model(), ARRAYS, seed=2, batch_size=2, **arguments | {"monitor": "loss"})
    with pytest.raises(ValueError, match=r"weights was .* is "):
        train(make_model(noisy=True), ARRAYS, seed=1, **arguments)
    with pytest.raises(ValueError, match="`jit_compile` can't change"):
        train(make_model(), ARRAYS, seed=1, jit_compile=True, **arguments)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="holds a file that no run wrote"):
        train(make_model(), ARRAYS, seed=1, **arguments)


class EveryStep(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        pass


class Sparing(EveryStep):
    needs_every_batch = False


class EveryTenth(Sparing):
    every_n_steps = 10


@pytest.mark.parametrize(
    ("make_callbacks", "steps"),
    [
        (lambda path: [], None),
        (lambda path: [keras.callbacks.ProgbarLogger(), keras.callbacks.History()], None),
        (lambda path: [keras.callbacks.ModelCheckpoint(path / "m.keras")], None),
        (lambda path: [keras.callbacks.BackupAndRestore(path)], None),
        (lambda path: [keras.callbacks.BackupAndRestore(path, save_freq=5)], 1),
        (lambda path: [keras.callbacks.EarlyStopping(), keras.callbacks.CSVLogger(path)], None),
        (lambda path: [keras.callbacks.LambdaCallback(on_epoch_end=print)], None),
        (lambda path: [keras.callbacks.LambdaCallback(on_train_batch_end=print)], 1),
        (lambda path: [keras.callbacks.TerminateOnNaN()], 1),
        (lambda path: [EveryStep()], 1),
        (lambda path: [Sparing()], None),
        (lambda path: [Sparing(), EveryTenth()], 10),
        (lambda path: [EveryTenth(), EveryStep()], 1),
    ],
)
def test_how_often_callbacks_wake_the_host(tmp_path, make_callbacks, steps):
    assert steps_between_hooks(make_callbacks(tmp_path), "train") == steps
