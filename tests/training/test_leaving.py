"""A run that is asked to leave, or killed, ends where it would have ended: decisions too."""

import contextlib
import errno
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradstab
from gradstab.data import from_arrays
from gradstab.recovery.termination import EXIT_CODE, Termination
from gradstab.training import train
from gradstab.training.callback_state import put_back, state_of
from gradstab.training.pipeline_feed import DatasetFeed

SCRIPT = """
import os, signal, sys
import gradstab, keras, numpy as np
from gradstab.training import train

draw = np.random.default_rng(0)
X = draw.normal(size=(60, 4)).astype("float32")
Y = (X[:, :1] + draw.normal(size=(60, 1))).astype("float32")


class Counter(keras.callbacks.Callback):
    kept_attributes = ("seen", "losses")

    def __init__(self):
        super().__init__()
        self.seen, self.losses = 0, [np.zeros(2)]

    def on_train_batch_end(self, batch, logs=None):
        self.seen += 1

    def on_epoch_end(self, epoch, logs=None):
        self.losses.append(np.array([epoch, logs["loss"]]))


class Strike(keras.callbacks.Callback):
    def __init__(self, step, number):
        super().__init__()
        self.step, self.number = step, number

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations) == self.step:
            os.kill(os.getpid(), self.number)


def decide(folder):
    callbacks = keras.callbacks
    return [
        callbacks.EarlyStopping("val_loss", patience=2, min_delta=0.02, restore_best_weights=True),
        callbacks.ReduceLROnPlateau("val_loss", factor=0.5, patience=1, min_delta=0.05, cooldown=1),
        callbacks.ModelCheckpoint(folder / "best.weights.h5", save_best_only=True,
                                  save_weights_only=True),
        Counter(),
    ]


def make(ours=True):
    keras.utils.set_random_seed(7)
    model = keras.Sequential([
        keras.layers.Input((4,)), keras.layers.Dense(8), keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.3), keras.layers.Dense(1),
    ])
    adam = keras.optimizers.Adam(0.05)
    model.compile(gradstab.stabilize(adam) if ours else adam, "mse", metrics=["mae"])
    return model


def run(folder, strike=None, resume=False, ours=True, data=(X, Y), **arguments):
    folder.mkdir(exist_ok=True)
    model, callbacks = make(ours), decide(folder)
    history = train(
        model, data, (X[:20], Y[:20]), epochs=12, batch_size=8, run_dir=folder / "run", seed=3,
        verbose=0, resume=resume, jit_compile=False,
        callbacks=[*callbacks, *([] if strike is None else [strike])], **arguments,
    )
    stop, plateau, checkpoint, counter = callbacks
    told = {
        "history": {k: np.asarray(v).tolist() for k, v in history.history.items()},
        "stop": (stop.wait, stop.stopped_epoch, stop.best, stop.best_epoch),
        "plateau": (plateau.wait, plateau.best, plateau.cooldown_counter),
        "rate": float(model.optimizer.learning_rate),
        "checkpoint": (checkpoint.best, (folder / "best.weights.h5").stat().st_size),
        "counter": (counter.seen, np.array(counter.losses).tolist()),
    }
    return model, told


if __name__ == "__main__":
    from pathlib import Path
    run(Path(sys.argv[1]), Strike(int(sys.argv[2]), int(sys.argv[3])))
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "script.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture(scope="module")
def task(script):
    return runpy.run_path(str(script))


@pytest.fixture(scope="module")
def undisturbed(task, tmp_path_factory):
    found = {}

    def of(ours=True):
        if ours not in found:
            found[ours] = task["run"](tmp_path_factory.mktemp("whole"), ours=ours)
        return found[ours]

    return of


@contextlib.contextmanager
def told(pattern):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    assert any(re.search(pattern, str(warning.message)) for warning in caught)


def left(task, folder, step, **arguments):
    """Have a run leave after a step."""
    with pytest.raises(SystemExit) as raised:
        task["run"](folder, task["Strike"](step, signal.SIGTERM), **arguments)
    assert raised.value.code == EXIT_CODE == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# In the first epoch, amid one, at the end of one, and again.
@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("steps", "ours"),
    [((3,), True), ((21, 29), True), ((16,), False), ((1, 2, 3), True), ((24, 32), True)],
)
def test_resumed_after_sigterm_is_undisturbed(
    task, undisturbed, tmp_path, same_state, steps, ours, capsys
):
    model, expected = undisturbed(ours)
    assert len(expected["history"]["loss"]) < 12, "early stopping has to act"
    assert expected["rate"] < 0.05, "the plateau too"
    for number, step in enumerate(steps):
        left(task, tmp_path, step, ours=ours, resume=number > 0)
        told = capsys.readouterr().out
        assert f"step {(step - 1) % 8 + 1} of epoch {(step - 1) // 8 + 1}. It is saved" in told
    resumed, found = task["run"](tmp_path, resume=True, ours=ours)
    assert found == expected
    assert same_state(resumed, model)


@pytest.mark.slow
@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_killed_decides_alike(
    script, task, undisturbed, tmp_path, same_state, number
):
    step = int(np.random.default_rng().integers(2, 40))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, tmp_path, str(step), str(int(number))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        timeout=300,
        check=False,
    )
    assert done.returncode == (EXIT_CODE if number == signal.SIGTERM else -number)
    model, expected = undisturbed()
    resumed, found = task["run"](tmp_path, resume=True)
    assert found == expected, f"killed at step {step}"
    assert same_state(resumed, model), f"killed at step {step}"


class InValidation(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_test_batch_end(self, batch, logs=None):
        if self.now == self.epoch:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_what_is_left_in_a_validation_is_validated_when_resumed(
    task, undisturbed, tmp_path, same_state
):
    with pytest.raises(SystemExit):
        task["run"](tmp_path, InValidation(2))
    resumed, found = task["run"](tmp_path, resume=True)
    model, expected = undisturbed()
    assert found == expected
    assert same_state(resumed, model)


@pytest.mark.slow
@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("kind", ["for_epoch", "plain", "endless"])
def test_pipelines_go_on_amid_an_epoch(task, tmp_path, same_state, kind):
    x, y = task["X"], task["Y"]
    arguments = {}
    if kind == "for_epoch":
        data = from_arrays(x, (y[:, 0] > 0).astype(int), batch_size=8, seed=1).train
    else:
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    if kind == "endless":
        data, arguments = data.repeat(), {"steps_per_epoch": 5}
    whole, expected = task["run"](tmp_path / "whole", data=data, **arguments)
    left(task, tmp_path / "left", 8, data=data, **arguments)
    resumed, found = task["run"](tmp_path / "left", resume=True, data=data, **arguments)
    assert found == expected
    assert same_state(resumed, whole)


@pytest.mark.slow
def test_a_broken_state_amid_an_epoch_goes_back_to_the_epoch(
    task, undisturbed, tmp_path, same_state
):
    left(task, tmp_path, 21)
    (weights,) = (tmp_path / "run" / "checkpoints").glob("*-step-*.h5")
    weights.write_bytes(weights.read_bytes()[:1000])
    with told(r"written after epoch 2: .*-step-000000005.weights.h5'"):
        resumed, found = task["run"](tmp_path, resume=True)
    assert found == undisturbed()[1]
    assert same_state(resumed, undisturbed()[0])


def test_without_a_directory_the_run_says_that_nothing_is_saved(task, capsys):
    with pytest.raises(SystemExit):
        train(
            task["make"](), (task["X"], task["Y"]), epochs=3, batch_size=8, jit_compile=False,
            callbacks=[task["Strike"](10, signal.SIGTERM)], verbose=0,
        )  # fmt: skip
    assert "step 2 of epoch 2. Nothing was saved" in capsys.readouterr().out


@pytest.mark.slow
def test_with_a_full_disk_the_run_leaves_all_the_same(
    task, undisturbed, tmp_path, same_state, monkeypatch, capsys
):
    rename = os.replace

    def fill(source, target):
        if "-step-" in str(target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source))
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", fill)
        left(task, tmp_path, 21)
    assert "No space left on device). What it holds is whole" in capsys.readouterr().out
    resumed, found = task["run"](tmp_path, resume=True)
    assert found == undisturbed()[1]
    assert same_state(resumed, undisturbed()[0])


@pytest.mark.slow
def test_callbacks_that_are_gone_are_told_and_new_ones_begin(task, tmp_path):
    left(task, tmp_path, 21)
    with told("lacks callbacks that it had: EarlyStopping, Counter"):
        train(
            task["make"](), (task["X"], task["Y"]), (task["X"][:20], task["Y"][:20]), epochs=4,
            batch_size=8, run_dir=tmp_path / "run", seed=3, verbose=0, resume=True,
            jit_compile=False, callbacks=task["decide"](tmp_path)[1:3],
        )  # fmt: skip


def test_what_cannot_be_kept_is_refused(task, tmp_path):
    class Odd(keras.callbacks.Callback):
        kept_attributes = ("thing",)
        thing = object()

    with pytest.raises(TypeError, match=r"`kept_attributes` of Odd must name .*thing, a object"):
        task["run"](tmp_path, Odd())


def test_a_handler_of_the_users_own_stays():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with Termination() as termination:
            os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [signal.SIGTERM]
        assert not termination.is_asked
    finally:
        signal.signal(signal.SIGTERM, before)


class Trainer:
    """As a model: each `fit` has a history of its own."""

    def fit(self, termination, work):
        self.history = keras.callbacks.History()
        termination.hold(Trainer.fit.__code__, self)
        return work()


@pytest.mark.parametrize("same", [True, False])
def test_a_fit_that_an_exception_ended_does_not_keep_the_signal(same):
    def broken():
        raise RuntimeError("broken")

    def asked():
        os.kill(os.getpid(), signal.SIGTERM)
        return second.is_asked

    model, first, second = Trainer(), Termination(), Termination()
    with pytest.raises(RuntimeError, match="broken"):
        model.fit(first, broken)
    assert (model if same else Trainer()).fit(second, asked)
    assert not first.is_asked
    second.is_asked = False
    second.release()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_after_the_last_look_acts_when_the_run_has_ended(monkeypatch):
    raised = []
    with Termination():
        os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.setattr(signal, "raise_signal", raised.append)
        assert not raised
    assert raised == [signal.SIGTERM]


def test_a_pipeline_goes_on_after_the_batches_that_were_taken():
    class Loop:
        def run_iterator(self, iterator, count):
            taken = [int(batch) for _, batch in zip(range(count), iterator, strict=False)]
            seen.extend(taken)
            return len(taken), {}

    for done in (0, 1, 2, 5):
        seen = []
        feed = DatasetFeed("train_data", tf.data.Dataset.range(8), None, 0)
        epoch = feed.open(0)
        epoch.skip(done)
        while epoch.run(Loop(), 3)[0]:
            pass
        assert seen == list(range(done, 8))


@pytest.mark.slow
def test_a_run_that_began_later_and_left_goes_on(task, tmp_path):
    left(task, tmp_path, 3, initial_epoch=3)
    _, found = task["run"](tmp_path, resume=True, initial_epoch=3)
    assert 1 <= len(found["history"]["loss"]) <= 9


def test_best_weights_in_half_precision_are_kept(tmp_path):
    weights = np.array([1.5, -2.0]).astype(tf.bfloat16.as_numpy_dtype)
    stop, again = (keras.callbacks.EarlyStopping(restore_best_weights=True) for _ in "ab")
    stop.best_weights = [weights]
    states, arrays = state_of([stop])
    np.savez(tmp_path / "arrays.npz", **arrays)
    with np.load(tmp_path / "arrays.npz", allow_pickle=False) as read:
        put_back([again], states, read)
    np.testing.assert_array_equal(again.best_weights[0], [1.5, -2.0])


def test_outside_the_main_thread_nothing_is_done():
    handlers = []

    def hold():
        with Termination():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=hold)
    thread.start()
    thread.join()
    assert handlers == [signal.SIG_DFL]


def test_fit_leaves_after_a_step_and_a_backup_goes_on(task, tmp_path, capsys):
    """`fit` keeps nothing itself: what it goes on from is the backup, which stays."""

    def fit(model, *callbacks):
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        guard = gradstab.callbacks.DivergenceGuard("recover", verbose=False)
        arguments = {"batch_size": 10, "epochs": 4, "verbose": 0, "shuffle": False}
        return model.fit(task["X"], task["Y"], callbacks=[*callbacks, backup, guard], **arguments)

    whole, resumed = (keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)]) for _ in "ab")
    resumed.set_weights(whole.get_weights())
    for model in (whole, resumed):
        model.compile(keras.optimizers.Adam(0.05), "mse")
    fit(whole)
    with pytest.raises(SystemExit) as raised:
        fit(resumed, task["Strike"](15, signal.SIGTERM))
    assert raised.value.code == EXIT_CODE
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert int(resumed.optimizer.iterations) == 15
    assert "left after step 3 of epoch 3" in capsys.readouterr().out
    fit(resumed)
    for one, other in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_a_fit_that_raised_leaves_no_deaf_process():
    code = """
import os, signal, keras, numpy as np, gradstab
class Break(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        raise RuntimeError("broken")
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
guard = gradstab.callbacks.DivergenceGuard()
try:
    model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0, callbacks=[guard, Break()])
except RuntimeError:
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    os.kill(os.getpid(), signal.SIGTERM)
print("deaf")
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == -signal.SIGTERM, done.stdout
