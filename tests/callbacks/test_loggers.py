"""Weights & Biases and MLflow get what the monitor adds to the logs, through callbacks of theirs.

Each runs in an interpreter of its own: both keep state in the process, and one starts a service.
"""

import importlib.util
import json
import math

import pytest

# Fits with a plain and a stabilized optimizer, one NaN among the latter's data, and with the
# callbacks in both orders; prints what `fit` returned beside what the logger stored.
FITS = """
import json, os, pathlib, sys
import keras
import numpy as np
import gradstab
from gradstab.callbacks import GradientMonitor

OPTIMIZERS = {
    "plain": keras.optimizers.Adam,
    "stabilized": lambda: gradstab.stabilize("adam", clip=1.0),
}
here = pathlib.Path.cwd()


def fit(kind, monitor_first, *loggers):
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    y = x @ np.ones((6, 1), "float32")
    if kind == "stabilized":
        x[9] = np.nan
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile(OPTIMIZERS[kind](), "mse")
    callbacks = [GradientMonitor(), *loggers] if monitor_first else [*loggers, GradientMonitor()]
    return model.fit(x, y, batch_size=8, epochs=3, verbose=0, callbacks=callbacks).history


def run(store):
    results = {}
    for kind in OPTIMIZERS:
        for monitor_first in (True, False):
            history, stored = store(kind, monitor_first)
            results[f"{kind}, monitor {'first' if monitor_first else 'last'}"] = (history, stored)
    print(json.dumps(results))
"""

# The summary holds the last value of each key, so it is read in each epoch.
WANDB = """
import wandb
from wandb.integration.keras import WandbMetricsLogger


class Summaries(keras.callbacks.Callback):
    def __init__(self, run):
        super().__init__()
        self.run = run
        self.epochs = []

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(dict(self.run.summary))


def store(kind, monitor_first):
    with wandb.init(project="gradstab", dir=here) as run:
        summaries = Summaries(run)
        history = fit(kind, monitor_first, WandbMetricsLogger(), summaries)
    stored = {
        key.removeprefix("epoch/"): [summary[key] for summary in summaries.epochs]
        for key in summaries.epochs[-1]
        if key.startswith("epoch/")
    }
    return history, stored


run(store)
wandb.teardown()
"""

MLFLOW = """
import mlflow
from mlflow.keras import MlflowCallback

mlflow.set_tracking_uri(f"sqlite:///{here / 'mlflow.db'}")
artifacts = (here / "artifacts").as_uri()
mlflow.set_experiment(experiment_id=mlflow.create_experiment("gradstab", artifacts))


def store(kind, monitor_first):
    with mlflow.start_run() as run:
        history = fit(kind, monitor_first, MlflowCallback())
        mlflow.flush_async_logging()
    client = mlflow.MlflowClient()
    stored = {
        key: [entry.value for entry in client.get_metric_history(run.info.run_id, key)]
        for key in client.get_run(run.info.run_id).data.metrics
    }
    return history, stored


run(store)
"""

# A child that was waited for leaves none to wait for.
NO_CHILD_IS_LEFT = """
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    pass
else:
    raise SystemExit("a process was left behind")
"""


def needs(package):
    """Skip where a package is not installed; a folder with its runs is not the package."""
    spec = importlib.util.find_spec(package)
    missing = spec is None or spec.origin is None
    return pytest.mark.skipif(missing, reason=f"{package} is missing: pip install {package}")


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Keep both off the network, and all that they write below `tmp_path`."""
    for name in ("HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CONSOLE", "off")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    "logger",
    [
        pytest.param(WANDB, marks=needs("wandb"), id="wandb"),
        pytest.param(MLFLOW, marks=needs("mlflow"), id="mlflow"),
    ],
)
def test_the_logger_stores_every_key_of_every_epoch(run_python, logger):
    printed = run_python(FITS + logger + NO_CHILD_IS_LEFT)
    results = json.loads(printed.splitlines()[-1])
    assert len(results) == 4
    for case, (history, stored) in results.items():
        assert {"grad_norm", "grad_norm_max", "clipped", "limited", "skipped"} <= set(history), case
        assert all(math.isfinite(value) for value in history["grad_norm"]), case
        assert set(history["skipped"]) == {int(case.startswith("stabilized"))}, case
        for key, values in history.items():
            assert stored.get(key) == pytest.approx(values, rel=1e-12, nan_ok=True), (case, key)
