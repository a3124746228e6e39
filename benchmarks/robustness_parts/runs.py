"""Runs in a directory: corrupted ones, and ones whose process is killed at any moment."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from gradstab.optimizers.stabilize import stabilize
from gradstab.training import train

_X = np.random.default_rng(0).normal(size=(48, 4)).astype("float32")
_EPOCHS = 4
# Fields of state.json and what stands there instead.
_FIELDS = {
    "epochs_done": [10**9, 1, 0, -1, 2.5, "2", None, True],
    "weights": ["../../x.weights.h5", "/etc/passwd", "", None, "epoch-000009.weights.h5"],
    "history": [{}, [], None, {"loss": []}, {"loss": [1.0] * 7}, {"loss": "x"}],
    "best_value": ["nan", -5.0, None],
    "best_epoch": [9, -1, "0", None],
    "random_states": [[], [[1]], [["a"]], None],
    "coefficients": [[1.0], "x", None],
    "stopped": ["yes", None],
    "surprise": [1],
}


def go(directory: Path, epochs: int = _EPOCHS, **arguments: Any) -> tuple[list[Any], Any]:
    """Train in a directory, from where it is, and return weights and history."""
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(8, "tanh"), keras.layers.BatchNormalization()]
    layers += [keras.layers.Dropout(0.2), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile(stabilize("adam", learning_rate=0.01), "mse")
    history = train(
        model, (_X, _X[:, :1]), epochs=epochs, batch_size=8, run_dir=directory, resume=True, seed=0,
        jit_compile=False, verbose=0, **arguments,
    ).history  # fmt: skip
    return model.get_weights(), history


def corrupted(count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Yield what was done to each directory, and what came: `"refused"`, `"went on"`, or worse."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        begun = Path(folder) / "begun"
        go(begun, 2)
        whole = go(shutil.copytree(begun, Path(folder) / "whole"))
        for number in range(count):
            copy = shutil.copytree(begun, Path(folder) / f"{number}")
            done = _damage(copy, draw)
            yield done, _what_came(copy, whole)
            shutil.rmtree(copy)


def _damage(directory: Path, draw: random.Random) -> str:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    file = draw.choice(files)
    kind = draw.choice(
        ["field"] * 3 + ["lost", "empty", "cut", "flipped", "noise", "folder", "two"]
    )
    if kind == "field":
        file = directory / "checkpoints" / "state.json"
        name = draw.choice(sorted(_FIELDS))
        value = draw.choice(_FIELDS[name])
        file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
        return f"state.json: {name} = {value!r:.60}"
    content = bytearray(file.read_bytes())
    if kind == "two":
        other = draw.choice([path for path in files if path != file])
        file.unlink()
        other.unlink()
        return f"{file.name} and {other.name}: lost"
    if kind in ("lost", "folder"):
        file.unlink()
        if kind == "folder":
            file.mkdir()
    elif kind == "flipped" and content:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    new = {"empty": b"", "cut": content[: len(content) // 3], "noise": draw.randbytes(3000)}
    if kind in ("empty", "cut", "noise", "flipped"):
        file.write_bytes(bytes(new.get(kind, content)))
    return f"{file.name}: {kind}"


def _what_came(directory: Path, whole: tuple[list[Any], Any]) -> str:
    try:
        weights, history = go(directory)
    except ValueError as error:
        told = str(error)
        is_one = "`run_dir`" in told and "\n" not in told and len(told) < 700
        return "refused" if is_one else f"raw ValueError: {told[:120]}"
    except Exception as error:
        return f"raw {type(error).__name__}: {str(error)[:120]}"
    same = all(np.array_equal(one, other) for one, other in zip(weights, whole[0], strict=True))
    return "went on" if same and history == whole[1] else "went on, to another end"


def killed(count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Yield when each run was killed, and whether it ends, resumed, where it would have."""
    draw = random.Random(seed)
    script = Path(__file__).resolve()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with tempfile.TemporaryDirectory() as folder:
        whole = go(Path(folder) / "whole")
        for number in range(count):
            directory = Path(folder) / f"{number}"
            command = [sys.executable, "-W", "ignore", str(script), str(directory)]
            process = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            assert process.stdout is not None
            process.stdout.readline()  # it begins to train
            seconds = draw.uniform(0.0, 2.5)
            time.sleep(seconds)
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
            yield f"after {seconds:.2f} s", _what_came(directory, whole)


class _Slow(keras.callbacks.Callback):
    """Has an epoch last long enough to be killed in, and in what it saves."""

    def on_train_begin(self, logs: Any = None) -> None:
        print("begins", flush=True)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        time.sleep(0.3)


if __name__ == "__main__":
    go(Path(sys.argv[1]), callbacks=[_Slow()])
