"""Logs of `train` over the steps that were applied, against NumPy, and what is judged by them."""

import json
import warnings

import common_checks as checks
import keras
import numpy as np
import pytest

from gradstab import DivergenceError, stabilize
from gradstab.training import JacobianPenalty, train

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(40, 6)).astype("float32")
Y = X[:, :1].copy()
SPOILED = X.copy()
SPOILED[7] = np.nan
QUIET = {"batch_size": 8, "seed": 0, "verbose": 0}


def make(optimizer=None, **arguments):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)]
    )
    optimizer = optimizer or stabilize(keras.optimizers.SGD(0.0), clip=None)
    model.compile(optimizer, "mse", metrics=["mae"], **arguments)
    return model


def means(model):
    """Loss and mean error over the batches of the first epoch that hold no NaN."""
    order = np.random.default_rng([0, 0]).permutation(len(X)).reshape(-1, 8)
    rows = np.concatenate([batch for batch in order if 7 not in batch])
    errors = model.predict(X[rows], verbose=0) - Y[rows]
    return np.mean(errors**2), np.mean(np.abs(errors))


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    "arguments",
    [{"jit_compile": False}, {"jit_compile": "step"}, {"jit_compile": "loop"}, {"eagerly": True}],
    ids=str,
)
def test_logs_hold_the_mean_over_applied_steps(arguments):
    arguments = dict(arguments)
    model = make(run_eagerly=arguments.pop("eagerly", False))
    logs = train(model, (SPOILED, Y), epochs=1, **arguments, **QUIET).history
    assert model.optimizer.telemetry.peek().total_skipped == 1
    loss, error = means(model)
    assert logs["loss"] == [pytest.approx(loss, rel=1e-5)]
    assert logs["mae"] == [pytest.approx(error, rel=1e-5)]


def test_on_two_replicas():
    with checks.mirrored(2).scope():
        model = make()
    logs = train(model, (SPOILED, Y), epochs=1, **QUIET).history
    loss, error = means(model)
    assert logs["loss"] == [pytest.approx(loss, rel=1e-5)]
    assert logs["mae"] == [pytest.approx(error, rel=1e-5)]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("jit_compile", [False, "loop"])
def test_a_window_that_is_skipped_is_left_out_whole(jit_compile):
    """40 examples as two windows of two micro-batches, and half of one that goes on."""
    inner = keras.optimizers.SGD(0.0, gradient_accumulation_steps=2)
    model = make(stabilize(inner, clip=None))
    x, y = SPOILED[:32], Y[:32]
    order = np.random.default_rng([0, 0]).permutation(32).reshape(-1, 16)
    rows = np.concatenate([window for window in order if 7 not in window])
    logs = train(model, (x, y), epochs=1, jit_compile=jit_compile, **QUIET).history
    assert model.optimizer.telemetry.peek().total_skipped == 1
    errors = model.predict(X[rows], verbose=0) - Y[rows]
    assert logs["loss"] == [pytest.approx(np.mean(errors**2), rel=1e-5)]


def test_penalties_are_logged_over_the_same_steps():
    logs = train(make(), (SPOILED, Y), epochs=1, penalties=[JacobianPenalty(0.1)], **QUIET).history
    assert np.isfinite(logs["jacobian_penalty"]).all()
    assert np.isfinite(logs["loss"]).all()


def test_one_bad_sample_neither_hides_the_best_model_nor_ends_the_run(tmp_path):
    """A loss that was NaN in every epoch left `model.keras` untrained, and ended healthy runs."""
    stopping = keras.callbacks.EarlyStopping(monitor="loss", patience=2)
    terminate = keras.callbacks.TerminateOnNaN()
    model = make(stabilize("adam", learning_rate=0.01))
    history = train(
        model,
        (SPOILED, Y),
        epochs=6,
        run_dir=tmp_path,
        early_stopping_patience=2,
        callbacks=[stopping, terminate],
        **QUIET,
    )
    losses = history.history["loss"]
    assert len(losses) == 6
    assert np.isfinite(losses).all()
    state = json.loads((tmp_path / "checkpoints/state.json").read_text())
    assert state["best_epoch"] == int(np.argmin(losses)) == 5
    best = keras.models.load_model(tmp_path / "model.keras")
    checks.close(best.trainable_variables, model.trainable_variables, 0.0)


def test_where_no_epoch_improved_it_is_said(tmp_path):
    bad = np.full_like(X, np.nan)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        train(make(), (X, Y), (bad, Y), epochs=2, run_dir=tmp_path, **QUIET)
    said = str(caught[-1].message)
    assert "`val_loss` was NaN in every epoch" in said
    assert "`model.keras` is the model as the run began" in said
    state = json.loads((tmp_path / "checkpoints/state.json").read_text())
    assert state["best_epoch"] is None


def test_an_infinite_loss_is_not_the_best(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        train(make(keras.optimizers.SGD(0.0)), (X, Y * 1e30), epochs=1, run_dir=tmp_path, **QUIET)
    assert "`loss` was not finite in every epoch" in str(caught[-1].message)
    state = json.loads((tmp_path / "checkpoints/state.json").read_text())
    assert state["best_value"] is None


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("epochs", [1, 3])
def test_a_run_whose_steps_were_all_skipped_is_told_however_short(epochs, tmp_path):
    model = make()
    begin = model.get_weights()
    bad = np.full_like(X, np.nan)
    with pytest.raises(DivergenceError, match=f"all {5 * epochs} steps .* were skipped") as raised:
        train(model, (bad, Y), epochs=epochs, run_dir=tmp_path, **QUIET)
    assert "sequential/dense/kernel" in str(raised.value)
    for weight, before in zip(model.get_weights(), begin, strict=True):
        np.testing.assert_array_equal(weight, before)
    history = json.loads((tmp_path / "history.json").read_text())
    assert np.isnan(history["loss"]).all()
