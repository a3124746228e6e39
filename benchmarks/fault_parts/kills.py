"""Runs that are killed at random moments and resumed, until they end: the same as undisturbed?"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

EPOCHS = 30
# Kills of one run, one after the other; each process goes on where the one before was killed.
KILLS = 3
# Seconds of a run, from its first step on, among which the moment of a kill is drawn.
SECONDS = 12.0


def child(folder: Path) -> None:
    """Train, from the start or from where it was, and write down what came of it."""
    import keras
    import numpy as np

    import gradstab
    from fault_parts import nets

    model, _ = nets.build("MLP", 1)
    model.compile(
        gradstab.stabilize(keras.optimizers.Adam(2e-3)),
        keras.losses.CategoricalCrossentropy(from_logits=True),
    )
    x, y, test_x, test_y = nets.digits()
    stop = keras.callbacks.EarlyStopping(patience=4, min_delta=0.02, restore_best_weights=True)
    plateau = keras.callbacks.ReduceLROnPlateau(patience=1, min_delta=0.02, factor=0.5)
    best = keras.callbacks.ModelCheckpoint(
        folder / "best.weights.h5", save_best_only=True, save_weights_only=True
    )
    # Once it is compiled.
    begun = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: print("begun", flush=True)
    )
    history = gradstab.training.train(
        model, x[:640], y[:640], validation_data=(test_x, test_y), epochs=EPOCHS, batch_size=32,
        seed=1, run_dir=folder / "run", resume=True, callbacks=[stop, plateau, best, begun],
        jit_compile=False, steps_per_call=4, verbose=0,
    )  # fmt: skip
    numbers = [*model.variables, *model.optimizer.variables]
    digest = 0
    for variable in numbers:
        digest = zlib.crc32(np.ascontiguousarray(np.asarray(variable)).tobytes(), digest)
    told = {
        "weights and moments": digest,
        "history": {k: np.asarray(v).tolist() for k, v in history.history.items()},
        "early stopping": [stop.wait, stop.stopped_epoch, float(stop.best), stop.best_epoch],
        "plateau": [plateau.wait, float(plateau.best), plateau.cooldown_counter],
        "checkpoint": float(best.best),
        "rate": float(model.optimizer.learning_rate),
    }
    (folder / "told.json").write_text(json.dumps(told), encoding="utf-8")


def _start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "fault_parts.kills", os.fspath(folder)],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finished(folder: Path) -> dict[str, Any]:
    process = _start(folder)
    _, errors = process.communicate(timeout=600)
    if process.returncode:
        return {"error": errors.strip().splitlines()[-1:]}
    told: dict[str, Any] = json.loads((folder / "told.json").read_text(encoding="utf-8"))
    return told


def undisturbed() -> dict[str, Any]:
    """Return what comes of the run that nothing befalls."""
    with tempfile.TemporaryDirectory() as folder:
        return _finished(Path(folder))


def run(number: int, first: int, expected: dict[str, Any]) -> dict[str, Any]:
    """Kill a run some times and resume it to its end.

    Returns:
        When it was killed and how, and what differs from the undisturbed run.
    """
    draw = random.Random(f"{first} kills {number}")
    killed: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(KILLS):
            process = _start(folder)
            assert process.stdout is not None
            process.stdout.readline()  # Its first steps were taken.
            after = draw.uniform(0.0, SECONDS)
            with_which = draw.choice((signal.SIGKILL, signal.SIGTERM))
            time.sleep(after)
            if process.poll() is None:
                process.send_signal(with_which)
                process.communicate(timeout=600)
                state = folder / "run" / "checkpoints" / "state.json"
                at = json.loads(state.read_text(encoding="utf-8")) if state.exists() else {}
                killed.append(
                    f"{with_which.name} after {after:.2f} s: epoch {at.get('epochs_done', 0)}, "
                    f"step {at.get('step', 0)}, exit {process.returncode}"
                )
            else:
                process.communicate()
        found = _finished(folder)
    different = [key for key in expected if found.get(key) != expected[key]]
    return {"killed": killed, "different": different, "error": found.get("error")}


if __name__ == "__main__":
    child(Path(sys.argv[1]))
