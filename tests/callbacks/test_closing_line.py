"""`fit` with a callback of gradstab's ends with one line: what was done, and a verdict."""

import keras
import numpy as np
import pytest

import gradstab
from gradstab.callbacks import DivergenceGuard, GradientMonitor

X = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
Y = X[:, :1] * 2


def _fit(optimizer, callbacks, x=X, verbose=2, epochs=2):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1)])
    model.compile(optimizer, "mse")
    model.fit(x, Y, epochs=epochs, batch_size=16, verbose=verbose, callbacks=callbacks)


def _lines(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("gradstab")]


@pytest.mark.parametrize("which", ["monitor", "guard", "both", "other order"])
def test_a_healthy_run_ends_with_one_line(which, capsys):
    callbacks = {
        "monitor": [GradientMonitor()],
        "guard": [DivergenceGuard()],
        "both": [GradientMonitor(), DivergenceGuard()],
        "other order": [DivergenceGuard(), GradientMonitor()],
    }[which]
    _fit(gradstab.stabilize("sgd", learning_rate=0.01), callbacks)
    assert _lines(capsys) == [
        "gradstab: 8 steps, 0 clipped, 0 limited, 0 skipped, effective rate 0.01. "
        "Healthy: nothing clipped, nothing skipped."
    ]


def test_the_rate_in_effect_is_that_after_clipping(capsys):
    optimizer = gradstab.stabilize("sgd", learning_rate=0.01, clip=0.1)
    _fit(optimizer, [GradientMonitor()])
    (line,) = _lines(capsys)
    assert "8 steps, 8 clipped" in line
    assert "of 0.01. Held back: 8 of 8 steps clipped." in line
    effective = float(line.partition("effective rate ")[2].partition(" ")[0])
    assert 0 < effective < 0.001
    _fit(gradstab.stabilize("adam", learning_rate=0.01, clip=0.1), [DivergenceGuard()])
    (line,) = _lines(capsys)
    assert "effective rate 0.01. Held back" in line


def test_skipped_steps_and_their_cause_are_told(capsys):
    bad = X.copy()
    bad[3] = np.nan
    _fit(gradstab.stabilize("sgd"), [GradientMonitor()], x=bad)
    (line,) = _lines(capsys)
    assert "skipped (nonfinite 2)" in line


def test_a_plain_optimizer_that_took_nan_has_diverged(tmp_path, capsys):
    bad = X.copy()
    bad[3] = np.nan
    _fit(keras.optimizers.SGD(0.01), [GradientMonitor(tmp_path)], x=bad)
    (line,) = _lines(capsys)
    assert "Diverged: At step " in line
    summary = gradstab.reports.summarize(gradstab.monitoring.read_record(tmp_path))
    assert summary.verdict == line.partition(". ")[2]


def test_a_plain_optimizer_and_a_silent_fit(capsys):
    _fit(keras.optimizers.SGD(0.01), [DivergenceGuard()])
    assert _lines(capsys)[0].startswith("gradstab: 8 steps, 0 clipped")
    _fit(keras.optimizers.SGD(0.01), [GradientMonitor()])
    assert _lines(capsys)[0].startswith("gradstab: 8 steps, 0 clipped")
    _fit(gradstab.stabilize("sgd"), [GradientMonitor(), DivergenceGuard()], verbose=0)
    assert _lines(capsys) == []


def test_what_a_guard_stops_is_told_by_the_record_too(tmp_path, capsys):
    guard = DivergenceGuard(verbose=False)
    callbacks = [guard, GradientMonitor(tmp_path)]
    _fit(gradstab.stabilize("sgd", max_consecutive=2), callbacks, x=X * np.nan, epochs=6)
    (line,) = _lines(capsys)
    assert "Diverged: " in line
    record = gradstab.monitoring.read_record(tmp_path)
    assert [event.name for event in record.events][-1] == "stop"
    assert gradstab.reports.summarize(record).verdict.startswith("Diverged: ")


def test_a_run_that_learns_nothing_is_not_called_healthy(capsys):
    _fit(gradstab.stabilize("sgd", learning_rate=1e-9), [GradientMonitor()])
    assert "No progress: the loss stayed at" in _lines(capsys)[0]
