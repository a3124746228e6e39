"""Two worker processes on one machine compared with one: accuracy, and a kill of either worker.

usage: python benchmarks/two_workers.py [--seeds 3] [--epochs 3] [--output FILE] [--quick]

The corrected CNN on Fashion-MNIST, `recipes.adam(1e-3, total_steps)`, batches of 32 that both
workers share, trained by `gradstab.training.train` three ways with the same seed: in one process;
in two workers under `MultiWorkerMirroredStrategy` on loopback; and in two workers of which one is
killed after its first epoch (the second worker for even seeds, the first for odd ones), after which
both are started again with `resume=True`. Reported: test accuracy of the last weights, seconds from
the kill to the end of the other worker, and the largest difference between the last weights of the
killed and the undisturbed run. The first steps of one and of two workers agree to rounding
(tests/training). Over thousands of steps rounding errors grow, so that the accuracies differ like
those of two seeds. Seeds come from the first eight hex digits of the commit. `--quick` takes
digits, one seed and one kill; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness.origin import git

FLOOR_POINTS = 0.5
LOST = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return _work(**json.loads(arguments.worker))
    data = "digits" if arguments.quick else "fashion_mnist"
    epochs = max(2, arguments.epochs)
    commit = git("rev-parse", "HEAD")
    first = int(commit[:8], 16)
    seeds = [first + place for place in range(1 if arguments.quick else arguments.seeds)]
    rows = []
    for seed in seeds:
        rows.append(_measure(data, epochs, seed))
        print(json.dumps(rows[-1]), flush=True)
    points = [100 * (row["two workers"] - row["one process"]) for row in rows]
    again = [100 * (row["killed, resumed"] - row["one process"]) for row in rows]
    print(f"\n{data}, {epochs} epochs, {len(rows)} seeds: test accuracy")
    for way in ("one process", "two workers", "killed, resumed"):
        values = ", ".join(f"{row[way]:.4f}" for row in rows)
        print(f"  {way:<16} median {statistics.median(row[way] for row in rows):.4f}  ({values})")
    print(f"  two workers against one process: median {statistics.median(points):+.2f} points")
    print(
        f"  killed and resumed against one process: median {statistics.median(again):+.2f} points"
    )
    waits = ", ".join(f"{row['seconds from kill to stop']:.1f}" for row in rows)
    print(f"  seconds from the kill to the end of the other worker: {waits}")
    holds = all(abs(value) <= FLOOR_POINTS for value in (*points, *again)) and all(
        row["largest difference to undisturbed"] == 0.0 for row in rows
    )
    print(f"floor: within {FLOOR_POINTS} points, the same end: {'reached' if holds else 'missed'}")
    if arguments.output:
        content = {
            "benchmark": "two_workers",
            "quick": arguments.quick,
            "commit": commit,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "python": platform.python_version(),
            "data": data,
            "epochs": epochs,
            "rows": rows,
        }
        arguments.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0 if holds or arguments.quick else 1


def _measure(data: str, epochs: int, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        settings = {"data": data, "epochs": epochs, "seed": seed % 2**31}
        alone = _results([_start({**settings, "run_dir": f"{folder}/alone"})])
        both = _results(_two({**settings, "run_dir": f"{folder}/both"}))
        workers = _two({**settings, "run_dir": f"{folder}/killed"})
        victim = seed % 2 == 0
        _wait_for(workers[not victim], "epoch 0")
        began = time.monotonic()
        workers[victim].kill()
        said, _ = workers[not victim].communicate(timeout=120)
        waited = time.monotonic() - began
        workers[victim].communicate()
        if workers[not victim].returncode != LOST or "another one is lost" not in said:
            raise RuntimeError(f"the other worker did not stop as it should:\n{said[-2000:]}")
        resumed = _results(_two({**settings, "run_dir": f"{folder}/killed", "resume": True}))
        return {
            "seed": seed,
            "one process": alone["accuracy"],
            "two workers": both["accuracy"],
            "killed, resumed": resumed["accuracy"],
            "killed worker": int(victim),
            "seconds from kill to stop": round(waited, 1),
            "largest difference to undisturbed": _difference(both["weights"], resumed["weights"]),
            "largest difference to one process": _difference(both["weights"], alone["weights"]),
        }


def _difference(first: str, second: str) -> float:
    import numpy as np

    with np.load(first) as a, np.load(second) as b:
        return max(float(np.abs(a[name] - b[name]).max()) for name in a.files)


def _two(settings: dict[str, Any]) -> list[subprocess.Popen[str]]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return [_start(settings, index, ports) for index in range(2)]


def _start(
    settings: dict[str, Any], index: int | None = None, ports: list[int] | None = None
) -> subprocess.Popen[str]:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    environment.pop("TF_CONFIG", None)
    if ports:
        cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
        task = {"type": "worker", "index": index}
        environment["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})
    return subprocess.Popen(
        [sys.executable, __file__, "--worker", json.dumps(settings)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _results(processes: list[subprocess.Popen[str]]) -> dict[str, Any]:
    """Wait for all, and return what the first one says."""
    said = [process.communicate()[0] for process in processes]
    for process, text in zip(processes, said, strict=True):
        if process.returncode:
            raise RuntimeError(text[-2000:])
    line = next(line for line in said[0].splitlines() if line.startswith("result: "))
    result: dict[str, Any] = json.loads(line.removeprefix("result: "))
    return result


def _wait_for(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(text):
            return
    raise RuntimeError(f"{text!r} never came")


def _work(data: str, epochs: int, seed: int, run_dir: str, resume: bool = False) -> int:
    """Train, in one of the processes."""
    import tensorflow as tf

    several = "TF_CONFIG" in os.environ
    strategy = (
        tf.distribute.MultiWorkerMirroredStrategy() if several else tf.distribute.get_strategy()
    )
    import keras
    import numpy as np

    import gradstab

    class Say(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            print("epoch", epoch, flush=True)

    datasets = gradstab.data.load(data, batch_size=32, seed=seed)
    keras.utils.set_random_seed(seed)
    with strategy.scope():
        model = gradstab.models.cnn_classifier(
            datasets.input_shape,
            datasets.num_classes,
            kernel_initializer=keras.initializers.HeNormal(seed),
            rescale=1 / datasets.pixel_max,
        )
        model.compile(
            gradstab.recipes.adam(1e-3, epochs * int(datasets.train.cardinality())),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
    try:
        gradstab.training.train(
            model,
            datasets.train,
            datasets.validation,
            epochs=epochs,
            seed=seed,
            callbacks=[Say()],
            run_dir=run_dir,
            resume=resume,
            jit_compile=False,
            verbose=0,
        )
    except gradstab.WorkerLostError as error:
        print("lost:", error, flush=True)
        return LOST
    if several and json.loads(os.environ["TF_CONFIG"])["task"]["index"] > 0:
        return 0
    # On one device: the other worker has ended.
    weights = f"{run_dir}/weights.npz"
    np.savez(weights, *model.get_weights())
    tester = keras.models.load_model(f"{run_dir}/model.keras")
    tester.set_weights(model.get_weights())
    accuracy = tester.evaluate(datasets.test, verbose=0, return_dict=True)["accuracy"]
    print("result:", json.dumps({"accuracy": accuracy, "weights": weights}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
