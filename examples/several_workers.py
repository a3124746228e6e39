"""
Several workers
===============

Two processes train one model under ``MultiWorkerMirroredStrategy``: each takes its share of every
batch, and each ends with the same weights. Keras' ``fit`` does not run under this strategy;
``gradstab.training.train`` does, and norms, bounds and skips are those of the whole batch. Here the
script starts both workers on one machine. On a cluster ``TF_CONFIG`` is set for you, and the part
below ``work`` is not needed.
"""

# %%
import json
import os
import socket
import subprocess
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

EPOCHS = 2 if "--quick" in sys.argv else 8

# %%
# What each worker does
# ---------------------
# The strategy comes before anything else of TensorFlow. All workers are given the same data, the
# same seed and the same directory, which the first of them writes. One training image is broken:
# the worker that gets it tells the others, and all skip that step.


def work(run_dir):
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()

    import keras
    import numpy as np

    import gradstab

    digits = gradstab.data.load("digits", seed=0)
    x, y = digits.arrays("train")
    x[7] = np.nan
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = gradstab.models.cnn_classifier(
            digits.input_shape, digits.num_classes, filters=(16, 32), rescale=1 / 16, seed=0
        )
        model.compile(
            gradstab.stabilize(keras.optimizers.Adam(2e-3)),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
    history = gradstab.training.train(
        model,
        x,
        y,
        validation_data=digits.arrays("validation"),
        epochs=EPOCHS,
        batch_size=32,  # of both together
        run_dir=run_dir,
        seed=0,
        jit_compile=False,
        verbose=0,
    )
    weights = np.concatenate([weight.ravel() for weight in model.get_weights()])
    skipped = model.optimizer.telemetry.read().total_skipped
    print(
        f"result: validation accuracy {history.history['val_accuracy'][-1]:.3f}, "
        f"{skipped} steps skipped, sum of weights {weights.sum():.6f}"
    )


if "TF_CONFIG" in os.environ:  # one of the workers
    work(sys.argv[1])
    sys.exit()

# %%
# Two workers on this machine
# ---------------------------
# ``TF_CONFIG`` names the addresses of all workers and which of them this one is.


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
run_dir = tempfile.mkdtemp(prefix="gradstab-")
workers = []
for index in range(2):
    task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
    workers.append(
        subprocess.Popen(
            [sys.executable, sys.argv[0], run_dir, *sys.argv[1:]],
            env={**os.environ, "TF_CONFIG": json.dumps(task)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    )

results = []
for index, worker in enumerate(workers):
    output, _ = worker.communicate(timeout=300)
    found = [line for line in output.splitlines() if line.startswith("result: ")]
    if worker.returncode or not found:
        raise RuntimeError(f"worker {index} failed:\n{output[-2000:]}")
    results.append(found[0])
    print(f"worker {index}: {found[0].removeprefix('result: ')}")

# %%
# Left behind: the best model, the last state to resume from, and the record. If a worker is lost,
# the others stop with ``WorkerLostError``; start all again with ``resume=True``.

print(*sorted(os.listdir(run_dir)))

if len(set(results)) != 1:
    raise RuntimeError("the workers differ")
