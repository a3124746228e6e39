"""Two processes that train one model: the numbers of one, and what happens when one is lost."""

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from gradstab.monitoring.record import read_record

SCRIPT = """
import json, os, sys, time
import tensorflow as tf
arguments = json.loads(sys.argv[1])
if "TF_CONFIG" in os.environ:
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
else:
    strategy = tf.distribute.get_strategy()
import keras
import numpy as np
import gradstab

draw = np.random.default_rng(0)
x = draw.normal(size=(75, 3)).astype("float32")
y = (x @ draw.normal(size=(3, 2)) + 0.1).astype("float32")
x[40] = np.nan
with strategy.scope():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(2)]
    )
    model.compile(gradstab.stabilize("adam", learning_rate=0.01), "mse", metrics=["mae"])

pause = arguments.pop("pause", 0)
is_second = json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {}).get("index") == 1

class Say(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        print("epoch", epoch, flush=True)
        if epoch == 2 and is_second:
            time.sleep(pause)

try:
    history = gradstab.training.train(
        model, (x, y), (x[:20], y[:20]), batch_size=16, verbose=0, jit_compile=False,
        callbacks=[Say()], **arguments,
    )
except gradstab.WorkerLostError as error:
    print("lost:", error, flush=True)
    sys.exit(3)
weights = [weight.tolist() for weight in model.get_weights()]
skipped = model.optimizer.telemetry.peek().total_skipped
print("result:", json.dumps([weights, history.history, skipped]), flush=True)
"""


def _start(arguments, index, ports):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    task = {"type": "worker", "index": index}
    environment["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _two(arguments):
    sockets = [socket.socket() for _ in range(2)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return [_start(arguments, index, ports) for index in range(2)]


def _alone(arguments, monkeypatch):
    """What the script says in this process, which is no worker."""
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.setattr(sys, "argv", ["script", json.dumps(arguments)])
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(SCRIPT, "script", "exec"), {"__name__": "__main__"})
    return _result_in(said.getvalue())


def _result(process):
    said, _ = process.communicate(timeout=150)
    return _result_in(said)


def _result_in(said):
    lines = [line for line in said.splitlines() if line.startswith("result: ")]
    assert lines, said[-3000:]
    return json.loads(lines[0].removeprefix("result: "))


def _same(got, expected, tolerance):
    for value, other in zip(got[0], expected[0], strict=True):
        np.testing.assert_allclose(value, other, rtol=tolerance, atol=tolerance)
    assert got[1].keys() == expected[1].keys()


@pytest.mark.slow
def test_two_workers_are_one(tmp_path, monkeypatch):
    """The seed is drawn by the first worker; a NaN example in one share skips the step in both."""
    arguments = {"epochs": 3, "seed": 0}
    workers = _two({**arguments, "run_dir": str(tmp_path / "run")})
    alone = _alone({**arguments, "run_dir": str(tmp_path / "alone")}, monkeypatch)
    first, second = map(_result, workers)
    assert first == second
    _same(first, alone, 1e-6)
    np.testing.assert_allclose(first[1]["val_mae"], alone[1]["val_mae"], rtol=1e-5)
    assert first[2] == alone[2] == 3
    left = [{path.name for path in (tmp_path / run).iterdir()} for run in ("run", "alone")]
    assert left[0] == left[1]
    assert {"config.json", "history.json", "model.keras", "checkpoints", "record.jsonl"} <= left[0]
    records = [read_record(tmp_path / run) for run in ("run", "alone")]
    assert [record.totals.steps for record in records] == [15, 15]
    assert [record.totals.skipped for record in records] == [3, 3]


def _wait_for(process, text):
    for line in process.stdout:
        if line.startswith(text):
            return
    raise AssertionError(f"{text!r} never came")


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_worker_stops_the_other_and_a_restart_comes_to_the_same_end(tmp_path, killed):
    arguments = {"seed": 0, "run_dir": str(tmp_path / "run")}
    workers = _two({**arguments, "epochs": 100_000})
    other = workers[1 - killed]
    _wait_for(other, "epoch 2")
    began = time.monotonic()
    workers[killed].kill()
    said, _ = other.communicate(timeout=60)
    workers[killed].communicate()
    assert time.monotonic() - began < 40
    assert other.returncode == 3, said[-3000:]
    lost = next(line for line in said.splitlines() if line.startswith("lost: "))
    assert "Training on 2 workers has stopped: another one is lost" in lost
    assert "resume=True" in lost
    done = json.loads((tmp_path / "run" / "checkpoints" / "state.json").read_text())["epochs_done"]
    again = {**arguments, "epochs": done + 3, "resume": True}
    resumed = [_result(each) for each in _two(again)]
    assert resumed[0] == resumed[1]
    undisturbed = [
        _result(each)
        for each in _two({**arguments, "epochs": done + 3, "run_dir": str(tmp_path / "new")})
    ]
    assert resumed[0][0] == undisturbed[0][0]


@pytest.mark.slow
def test_a_worker_that_falls_silent_is_given_up_after_the_timeout():
    """It lives, and so TensorFlow waits for it."""
    workers = _two({"epochs": 100_000, "seed": 0, "worker_timeout": 6.0, "pause": 90.0})
    began = time.monotonic()
    said, _ = workers[0].communicate(timeout=80)
    waited = time.monotonic() - began
    workers[1].kill()
    workers[1].communicate()
    assert workers[0].returncode == 3, said[-3000:]
    assert "no answer for 6 s (`worker_timeout`)" in said
    assert "Nothing was saved" in said
    assert waited < 60
