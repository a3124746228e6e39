"""Keras' own callbacks do their work on a wrapped optimizer, wherever they stand in the list."""

import csv

import keras
import numpy as np
import pytest

import gradstab
from gradstab.callbacks import DivergenceGuard, GradientMonitor
from gradstab.schedules import Adjustable


@pytest.fixture
def data():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(96, 6)).astype("float32")
    return x, (x @ rng.normal(size=6) > 0).astype("int32")


def make_model(optimizer):
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, activation="tanh"),
            keras.layers.Dense(2),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model


def fit(model, data, callbacks, epochs=3, **arguments):
    return model.fit(
        *data,
        batch_size=32,
        epochs=epochs,
        verbose=0,
        shuffle=False,
        callbacks=callbacks,
        **arguments,
    )


@pytest.fixture(params=[pytest.param("first", marks=pytest.mark.slow), "last"])
def among_ours(request):
    """Puts a callback before or after ours."""

    def arrange(callback):
        ours = [GradientMonitor(), DivergenceGuard()]
        return [callback, *ours] if request.param == "first" else [*ours, callback]

    return arrange


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("rate", [0.1, "scheduled"])
def test_reduce_lr_on_plateau_cuts_the_rate(data, among_ours, rate):
    schedule = Adjustable(keras.optimizers.schedules.CosineDecay(0.1, 10_000))
    model = make_model(gradstab.stabilize(keras.optimizers.SGD(schedule if rate != 0.1 else 0.1)))
    # No epoch betters the loss by 100, so every one but the first is a plateau.
    callback = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=100.0)
    fit(model, data, among_ours(callback))
    assert float(model.optimizer.learning_rate) == pytest.approx(0.025, rel=1e-4)


def test_reduce_lr_on_plateau_can_watch_our_scalars(data, among_ours):
    model = make_model(gradstab.stabilize("sgd", learning_rate=0.1))
    callback = keras.callbacks.ReduceLROnPlateau(
        "grad_norm", 0.5, patience=1, min_delta=100.0, mode="min"
    )
    fit(model, data, among_ours(callback))
    assert float(model.optimizer.learning_rate) == pytest.approx(0.025, rel=1e-6)


def test_learning_rate_scheduler_sets_the_rate(data, among_ours):
    model = make_model(gradstab.stabilize("sgd", learning_rate=0.1))
    callback = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    history = fit(model, data, among_ours(callback))
    assert float(model.optimizer.inner_optimizer.learning_rate) == pytest.approx(0.0125, rel=1e-6)
    assert history.history["learning_rate"] == pytest.approx([0.05, 0.025, 0.0125], rel=1e-6)


def test_model_checkpoint_saves_a_model_that_goes_on_alike(data, among_ours, tmp_path):
    model = make_model(gradstab.stabilize("adam", learning_rate=0.01, clip=0.1))
    callback = keras.callbacks.ModelCheckpoint(tmp_path / "model.keras")
    fit(model, data, among_ours(callback))
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert int(loaded.optimizer.iterations) == 9
    assert loaded.optimizer.telemetry.read().total_clipped == 9
    for each in (model, loaded):
        fit(each, data, [])
    for expected, value in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(value, expected)


def test_backup_and_restore_resumes_like_an_uninterrupted_run(data, among_ours, tmp_path):
    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def optimizer():
        return gradstab.stabilize("adam", learning_rate=0.01, clip=0.1)

    uninterrupted = make_model(optimizer())
    fit(uninterrupted, data, [], epochs=4)
    model = make_model(optimizer())
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(KeyboardInterrupt):
        fit(model, data, [*among_ours(backup), Interrupt()], epochs=4)
    model = make_model(optimizer())
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    history = fit(model, data, among_ours(backup), epochs=4)
    assert history.epoch == [2, 3]
    assert model.optimizer.telemetry.read().cursor == 12
    for expected, value in zip(uninterrupted.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(value, expected)


def test_early_stopping_stops_and_restores(data, among_ours):
    model = make_model(gradstab.stabilize("sgd", clip=1.0, learning_rate=0.1))
    callback = keras.callbacks.EarlyStopping(
        "loss", patience=1, min_delta=100.0, restore_best_weights=True
    )
    history = fit(model, data, among_ours(callback), epochs=9)
    assert len(history.epoch) == 2
    reference = make_model(keras.optimizers.SGD(0.1, global_clipnorm=1.0))
    fit(reference, data, [], epochs=1)
    for expected, value in zip(reference.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-6)


def test_swap_ema_weights_swaps(data, among_ours):
    def run(wrap):
        inner = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9)
        model = make_model(wrap(inner))
        swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
        callbacks = among_ours(swap) if wrap is not plain else [swap]
        return model, fit(model, data, callbacks, validation_data=data)

    def plain(inner):
        return inner

    model, history = run(lambda inner: gradstab.stabilize(inner, clip=None))
    reference, expected = run(plain)
    assert history.history["val_loss"] == pytest.approx(expected.history["val_loss"], rel=1e-6)
    for one, other in zip(model.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def test_terminate_on_nan_terminates_where_nothing_skips(data, among_ours):
    x, y = data
    x = x.copy()
    x[40] = np.nan
    model = make_model(gradstab.optimizers.clip_by_value("sgd", 1.0, learning_rate=0.1))
    history = fit(model, (x, y), among_ours(keras.callbacks.TerminateOnNaN()), epochs=4)
    assert len(history.epoch) == 1


def test_csv_logger_has_the_same_columns_wherever_it_stands(data, among_ours, tmp_path):
    model = make_model(gradstab.stabilize("sgd", learning_rate=0.1))
    path = tmp_path / "log.csv"
    fit(model, data, among_ours(keras.callbacks.CSVLogger(path)), validation_data=data)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    ours = {"grad_norm", "grad_norm_max", "clipped", "limited", "skipped", "update_ratio"}
    assert set(rows[0]) == {"epoch", "loss", "accuracy", "val_loss", "val_accuracy"} | ours
    assert all(float(row["grad_norm"]) > 0 for row in rows)
