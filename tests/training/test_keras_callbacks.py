"""Keras' own callbacks under `train`, each by its effect."""

import csv

import keras
import numpy as np
import pytest

import gradstab
from gradstab.training import train


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("stabilized", [False, True])
def test_effects(make_model, data, tmp_path, stabilized):
    optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_overwrite_frequency=None)
    model = make_model(gradstab.stabilize(optimizer) if stabilized else optimizer)
    kernel = model.weights[0]
    plain, averaged = [], []
    callbacks = [
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.1 if epoch else 0.2),
        keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: plain.append(kernel.numpy().copy())),
        keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
        keras.callbacks.LambdaCallback(
            on_epoch_end=lambda *_: averaged.append(kernel.numpy().copy())
        ),
        keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_weights_only=True),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=1, min_delta=100.0, factor=0.5),
        keras.callbacks.EarlyStopping(monitor="loss", patience=2, min_delta=100.0),
        keras.callbacks.TerminateOnNaN(),
    ]
    history = train(model, data, data, epochs=9, callbacks=callbacks, verbose=0, jit_compile=False)
    assert history.epoch == [0, 1, 2]  # EarlyStopping
    np.testing.assert_allclose(history.history["learning_rate"], [0.2, 0.1, 0.1])
    np.testing.assert_allclose(float(model.optimizer.learning_rate), 0.05)  # ReduceLROnPlateau
    assert not np.array_equal(plain[0], averaged[0])  # SwapEMAWeights
    assert sorted(path.name for path in tmp_path.glob("*.h5")) == [
        f"{epoch}.weights.h5" for epoch in (1, 2, 3)
    ]
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    np.testing.assert_allclose([float(row["loss"]) for row in rows], history.history["loss"])


def test_terminate_on_nan_sees_every_step(make_model, data):
    x, y = data
    model = make_model()
    callback = keras.callbacks.TerminateOnNaN()
    train(model, (x * np.inf, y), epochs=3, callbacks=[callback], verbose=0, jit_compile=False)
    assert int(model.optimizer.iterations) == 1


def test_backup_and_restore_goes_on_after_the_last_epoch(make_model, data, tmp_path, same_state):
    class InterruptedError(Exception):
        pass

    def interrupt(epoch, logs):
        if epoch == 2:
            raise InterruptedError

    arguments = {"epochs": 4, "seed": 0, "verbose": 0, "jit_compile": False}
    whole, first, second = (make_model() for _ in range(3))
    train(whole, data, **arguments)
    backup = keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)
    breaking = keras.callbacks.LambdaCallback(on_epoch_begin=interrupt)
    with pytest.raises(InterruptedError):
        train(first, data, callbacks=[backup, breaking], **arguments)
    history = train(
        second, data, callbacks=[keras.callbacks.BackupAndRestore(tmp_path)], **arguments
    )
    assert history.epoch == [2, 3]
    assert same_state(whole, second)


def test_monitor_and_guard_of_ours(make_model, data, tmp_path):
    x, y = data
    bad = x.copy()
    bad[40] = np.nan
    model = make_model(gradstab.stabilize(keras.optimizers.SGD(0.1), clip=1.0))
    callbacks = [
        gradstab.callbacks.GradientMonitor(tmp_path / "run", every_n_steps=1),
        gradstab.callbacks.DivergenceGuard(),
    ]
    history = train(
        model, (bad, y), (x, y), epochs=2, callbacks=callbacks, run_dir=tmp_path / "run",
        verbose=0, jit_compile=False,
    )  # fmt: skip
    assert history.history["skipped"] == [1, 1]
    assert np.all(np.isfinite(history.history["grad_norm"]))
    assert (tmp_path / "run" / "record.jsonl").exists()
    assert (tmp_path / "run" / "model.keras").exists()
