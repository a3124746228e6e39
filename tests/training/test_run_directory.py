import errno
import json
import os
import runpy
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab.training import train


class Killed(BaseException):
    """Ends a run where a kill would: nothing that a run catches or cleans up comes after it."""


def test_what_a_run_leaves_on_disk(make_model, data, tmp_path):
    directory = tmp_path / "runs" / "first"
    model = make_model()
    history = train(model, data, data, epochs=3, seed=4, run_dir=directory, verbose=0)
    files = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
    assert files == {
        "config.json", "history.json", "model.keras", "record.jsonl", "gradient_norm.png",
        "layer_norms.png", "checkpoints/state.json", "checkpoints/epoch-000003.weights.h5",
        "checkpoints/before.json", "checkpoints/epoch-000002.weights.h5",
    }  # fmt: skip
    assert json.loads((directory / "history.json").read_text()) == history.history
    config = json.loads((directory / "config.json").read_text())
    assert config["arguments"]["seed"] == 4
    assert config["loop"]["form"] == "graph"
    assert config["loop"] == history.params["loop"]
    assert config["versions"]["keras"] == keras.__version__


def test_model_file_is_the_best(make_model, data, tmp_path):
    model = make_model(keras.optimizers.SGD(0.5))

    def spoil(epoch, logs):
        if epoch == 1:
            model.optimizer.learning_rate = 50.0

    callback = keras.callbacks.LambdaCallback(on_epoch_end=spoil)
    history = train(
        model, data, data, epochs=4, callbacks=[callback], run_dir=tmp_path, jit_compile=False,
        verbose=0,
    )  # fmt: skip
    losses = history.history["val_loss"]
    assert np.argmin(losses) == 1
    best = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(best.evaluate(*data, verbose=0)[0], losses[1], rtol=1e-5)


_TWO_EPOCHS = {"epochs": 2, "seed": 2, "jit_compile": False, "verbose": 0}


@pytest.fixture(scope="module")
def undisturbed(make_model, data, tmp_path_factory):
    """A run that nothing stops: its directory, model and history."""
    directory = tmp_path_factory.mktemp("whole")
    model = make_model(noisy=True)
    return directory, model, train(model, data, data, run_dir=directory, **_TWO_EPOCHS)


# The renamings of a run: the model as it begins, config.json, and in each epoch the best model, the
# last weights, state.json, history.json.
@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("kill_at", [2, 4, 5, 6])
def test_resumed_is_uninterrupted_wherever_the_kill_falls(
    make_model, data, tmp_path, monkeypatch, same_state, undisturbed, kill_at
):
    whole_directory, whole, expected = undisturbed
    rename, renamed = os.replace, []

    def die(source, target):
        renamed.append(target)
        if len(renamed) == kill_at:
            monkeypatch.setattr("pathlib.Path.unlink", lambda *_, **__: None)
            raise Killed
        rename(source, target)

    directory = tmp_path / "killed"
    interrupted = make_model(noisy=True)
    monkeypatch.setattr("os.replace", die)
    with pytest.raises(Killed):
        train(interrupted, data, data, run_dir=directory, **_TWO_EPOCHS)
    monkeypatch.undo()
    assert any(directory.rglob(".writing-*"))

    model = make_model(noisy=True)
    history = train(model, data, data, run_dir=directory, resume=True, **_TWO_EPOCHS)
    assert history.history == expected.history
    assert history.epoch == [0, 1]
    assert same_state(model, whole)
    assert not any(directory.rglob(".writing-*"))
    states = [
        json.loads((path / "checkpoints" / "state.json").read_text())
        for path in (directory, whole_directory)
    ]
    for state in states:  # Of the same numbers, HDF5 may make other bytes.
        state.pop("checksum")
    assert states[0] == states[1]


_SCRIPT = """
import os, signal, sys
import gradstab, keras, numpy as np
from gradstab.training import train

def run(directory, kill=lambda batch, logs: None, resume=False):
    keras.utils.set_random_seed(7)
    model = keras.Sequential([
        keras.layers.Input((4,)), keras.layers.Dense(8), keras.layers.Dropout(0.5),
        keras.layers.Dense(1),
    ])
    model.compile(gradstab.stabilize(keras.optimizers.Adam(0.01)), "mse")
    x = np.random.default_rng(0).normal(size=(50, 4)).astype("float32")
    callback = keras.callbacks.LambdaCallback(on_train_batch_end=kill)
    train(
        model, (x, x[:, :1]), epochs=4, batch_size=8, run_dir=directory, seed=3, verbose=0,
        resume=resume, jit_compile=False, callbacks=[callback],
    )
    return model

def kill(batch, logs):
    if os.path.exists(sys.argv[1] + "/checkpoints/epoch-000002.weights.h5") and batch == 3:
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    run(sys.argv[1], kill)
"""


@pytest.mark.slow
def test_a_process_that_is_killed_in_an_epoch_resumes_bit_for_bit(tmp_path, same_state):
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    killed = subprocess.run(
        [sys.executable, "-W", "ignore", script, tmp_path / "killed"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        timeout=300,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    state = json.loads((tmp_path / "killed" / "checkpoints" / "state.json").read_text())
    assert state["epochs_done"] == 2
    run = runpy.run_path(str(script))["run"]
    assert same_state(run(tmp_path / "killed", resume=True), run(tmp_path / "whole"))


@pytest.mark.slow
def test_resuming_a_longer_run_and_where_nothing_is_there(make_model, data, tmp_path, same_state):
    whole, first, second = (make_model(noisy=True) for _ in range(3))
    arguments = {"seed": 0, "jit_compile": False, "verbose": 0}
    train(whole, data, epochs=4, run_dir=tmp_path / "whole", **arguments)
    train(first, data, epochs=2, run_dir=tmp_path / "run", resume=True, **arguments)
    history = train(second, data, epochs=4, run_dir=tmp_path / "run", resume=True, **arguments)
    assert len(history.history["loss"]) == 4
    assert same_state(whole, second)


@pytest.mark.slow
def test_order_of_arrays_without_a_seed_is_kept(make_model, data, tmp_path, same_state):
    models = [make_model() for _ in range(3)]
    train(models[0], data, epochs=2, run_dir=tmp_path / "a", verbose=0)
    train(models[1], data, epochs=1, run_dir=tmp_path / "b", verbose=0)
    config = tmp_path / "b" / "config.json"
    taken = json.loads((tmp_path / "a" / "config.json").read_text())["order_seed"]
    assert taken != json.loads(config.read_text())["order_seed"]
    train(models[2], data, epochs=2, run_dir=tmp_path / "a", resume=True, verbose=0)
    assert same_state(models[0], models[2])


@pytest.mark.slow
def test_early_stop_counts_on_after_a_kill_and_stays_stopped(make_model, data, tmp_path):
    arguments = {
        "epochs": 20, "early_stopping_patience": 3, "run_dir": tmp_path, "jit_compile": False,
        "verbose": 0,
    }  # fmt: skip

    def die(epoch, logs):
        if epoch == 2:
            raise Killed

    never = keras.optimizers.SGD(0.0)
    with pytest.raises(Killed):
        train(
            make_model(never), data, data, **arguments,
            callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=die)],
        )  # fmt: skip
    for _ in range(2):
        model = make_model(keras.optimizers.SGD(0.0))
        history = train(model, data, data, resume=True, **arguments)
        assert len(history.history["loss"]) == 4
        assert int(model.optimizer.iterations) == 12


def test_endless_pipeline_goes_on_where_it_was(make_model, data, tmp_path, same_state):
    endless = tf.data.Dataset.from_tensor_slices(data).repeat().batch(10)
    arguments = {"steps_per_epoch": 4, "jit_compile": False, "verbose": 0}
    whole, model = make_model(), make_model()
    train(whole, endless, epochs=3, **arguments)
    train(make_model(), endless, epochs=1, run_dir=tmp_path, **arguments)
    train(model, endless, epochs=3, run_dir=tmp_path, resume=True, **arguments)
    assert same_state(whole, model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("full_at", "named"), [(3, "model.keras"), (4, "epoch-000001.weights.h5"), (5, "state.json")]
)
def test_a_full_disk_is_told_by_the_file_and_the_run_goes_on_later(
    make_model, data, tmp_path, monkeypatch, same_state, undisturbed, full_at, named
):
    rename, renamed = os.replace, []

    def fill(source, target):
        renamed.append(target)
        if len(renamed) == full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source))
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", fill)
        with pytest.raises(OSError, match=f"{named}' .No space left on device.") as raised:
            train(make_model(noisy=True), data, data, run_dir=tmp_path, **_TWO_EPOCHS)
    assert "make room, and go on with `resume=True`" in str(raised.value)
    model = make_model(noisy=True)
    train(model, data, data, run_dir=tmp_path, resume=True, **_TWO_EPOCHS)
    assert same_state(model, undisturbed[1])
