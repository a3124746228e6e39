"""Run records: real ones of runs that fail, made by a small fit, and written ones."""

import math

import keras
import numpy as np
import pytest

import gradstab
from gradstab.monitoring.writer import RecordWriter

HOSTILE = (
    "model/<script>alert(1)</script>/kernel",
    'model/"><img src=x onerror=alert(2)>/bias',
    "model/$\\frac{1}$/kernel",
    "model/$odd/bias",
    "model/\x1b[31mred\u202egnp.exe\ud800&amp;/kernel",
)


def write_run(run_dir, names, *, steps=300, full=True):
    """Write a run with all that a record can hold: a fault at 101 to 103, and a stop at its end."""
    rng = np.random.default_rng(7)
    count = len(names)
    config = {"optimizer": "Adam", "every_n_steps": 10, "max_norm": 1.0}
    layers = list(names) if full else []
    with RecordWriter(
        run_dir, variables=names, layers=layers, trained_layers=layers, config=config
    ) as writer:
        for step in range(1, steps + 1):
            if 101 <= step <= 103:
                writer.event("skip", step=step, cause="nonfinite", variable=names[0])
            if step % 10:
                continue
            norm = math.exp(rng.normal())
            scalars = {
                "loss": 0.1 + math.exp(-step / 100),
                "grad_norm": norm,
                "grad_norm_after": min(norm, 1.0),
                "clipped": int(norm > 1.0),
                "skipped": 0,
            }
            sample = {"grad_norm": 10.0 ** np.linspace(-6, 0, count)}
            by_layer, rates = {}, {}
            if full:
                scalars |= {"linearity_predicted": -0.01, "linearity_actual": -0.008}
                sample |= {
                    "weight_norm": 1.0 + rng.random(count),
                    "update_ratio": 10.0 ** rng.normal(-3, 0.5, count),
                }
                by_layer = {
                    "activation_mean": rng.normal(size=count),
                    "activation_deviation": rng.random(count),
                    "activation_saturated": rng.random(count),
                    "activation_dead": rng.random(count),
                }
                rates = {"effective_rate_median": 10.0 ** rng.normal(-3, 0.5, count)}
            writer.step(step, scalars, sample, by_layer, rates)
            if full and step % 100 == 0:
                logs = {"loss": 10 / step, "val_loss": 12 / step, "accuracy": 1 - 10 / step}
                writer.epoch(step // 100, step=step, logs=logs)
        if full:
            writer.event("stop", step=steps, cause="divergence", message="3 steps were skipped")
    return run_dir


def _fit(run_dir, layers, x, epochs):
    keras.utils.set_random_seed(3)
    model = keras.Sequential(layers)
    model.compile(gradstab.stabilize(keras.optimizers.SGD(0.1)), "mse")
    monitor = gradstab.callbacks.GradientMonitor(run_dir, every_n_steps=2)
    target = np.ones((len(x), 1), "float32")
    model.fit(x, target, batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=[monitor])
    return run_dir


@pytest.fixture(scope="session")
def nan_run(tmp_path_factory):
    """Eight steps per epoch; the sixth meets a NaN in each of two epochs."""
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    x[43, 1] = math.nan
    layers = [keras.layers.Input((4,)), keras.layers.Dense(8, "relu", name="first")]
    layers.append(keras.layers.Dense(1, name="last"))
    return _fit(tmp_path_factory.mktemp("nan_run"), layers, x, epochs=2)


@pytest.fixture(scope="session")
def vanishing_run(tmp_path_factory):
    """Twelve sigmoid layers with small weights: the first ones' gradients are next to nothing."""
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    small = keras.initializers.RandomNormal(stddev=0.1, seed=1)
    layers = [keras.layers.Input((4,))]
    for place in range(12):
        name = f"deep_{place}"
        layers.append(keras.layers.Dense(8, "sigmoid", kernel_initializer=small, name=name))
    layers.append(keras.layers.Dense(1, name="head"))
    return _fit(tmp_path_factory.mktemp("vanishing_run"), layers, x, epochs=2)


@pytest.fixture
def full_run(tmp_path):
    """A run of five variables with hostile names, and all that a record can hold."""
    return write_run(tmp_path / "full", HOSTILE)


@pytest.fixture
def wide_run(tmp_path):
    """A run of 320 variables."""
    names = [f"net/block_{place}/{kind}" for place in range(160) for kind in ("kernel", "bias")]
    return write_run(tmp_path / "wide", names, steps=100)


@pytest.fixture
def bare_run(tmp_path):
    """A run that has what `GradientMonitor` has always written, and no more."""
    return write_run(tmp_path / "bare", ["a/kernel", "a/bias"], full=False)


@pytest.fixture
def empty_run(tmp_path):
    """A run that was killed before its first step."""
    with RecordWriter(tmp_path / "empty"):
        pass
    return tmp_path / "empty"
