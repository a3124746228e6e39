"""`train` with a run directory leaves a record, of which `gradstab report` makes a page."""

import keras
import numpy as np
import pytest

import gradstab
from gradstab.monitoring import read_record
from gradstab.reports import summarize, write_html
from gradstab.training import train

PLAIN = {"jit_compile": False, "seed": 0, "verbose": 0}


class StopsAt(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("optimizer", ["sgd", "wrapped"])
def test_a_run_leaves_one_record_with_one_end(make_model, data, tmp_path, optimizer):
    sgd = keras.optimizers.SGD(0.1)
    given = gradstab.stabilize(sgd) if optimizer == "wrapped" else sgd
    history = train(make_model(given), *data, data, epochs=3, run_dir=tmp_path, **PLAIN)
    record = read_record(tmp_path)
    assert [event.name for event in record.events] == ["end"]
    assert record.earlier == ()
    assert [epoch.number for epoch in record.epochs] == [1, 2, 3]
    for name in ("loss", "val_loss", "accuracy", "val_accuracy"):
        told = [epoch.logs[name] for epoch in record.epochs]
        np.testing.assert_allclose(told, history.history[name], rtol=1e-6)
    assert record.totals.steps == 9
    assert record.totals.largest_norm > 0
    assert set(history.history) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert summarize(record).verdict == "Healthy: nothing clipped, nothing skipped."
    assert "Healthy: nothing clipped" in write_html(tmp_path).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "wrapped"])
@pytest.mark.parametrize("stop", [None, 2])
def test_a_resumed_run_is_the_same_run(make_model, data, tmp_path, optimizer, stop):
    def model():
        given = gradstab.stabilize("sgd") if optimizer == "wrapped" else keras.optimizers.SGD()
        return make_model(given)

    arguments = {"run_dir": tmp_path, **PLAIN}
    if stop is None:
        train(model(), *data, epochs=2, **arguments)
    else:
        with pytest.raises(KeyboardInterrupt):
            train(model(), *data, epochs=4, callbacks=[StopsAt(stop)], **arguments)
        assert "Interrupted by KeyboardInterrupt" in summarize(read_record(tmp_path)).verdict
    train(model(), *data, epochs=4, resume=True, **arguments)
    record = read_record(tmp_path)
    assert record.earlier == ()
    assert [epoch.number for epoch in record.epochs] == [1, 2, 3, 4]
    assert [epoch.step for epoch in record.epochs] == [3, 6, 9, 12]
    assert [(event.name, event.step) for event in record.events] == [("end", 12)]
    assert record.totals.steps == 12
    assert len(record.runs) == 2
    train(model(), *data, epochs=4, resume=True, **arguments)  # nothing is left to train
    again = read_record(tmp_path)
    assert again.totals.steps == 12
    assert [epoch.step for epoch in again.epochs] == [3, 6, 9, 12]


def test_a_monitor_that_writes_there_is_not_doubled(make_model, data, tmp_path):
    monitor = gradstab.callbacks.GradientMonitor(tmp_path, every_n_steps=1)
    train(make_model(), *data, epochs=1, run_dir=tmp_path, callbacks=[monitor], **PLAIN)
    record = read_record(tmp_path)
    assert record.steps.tolist() == [1, 2, 3]
    assert record.earlier == ()


@pytest.mark.slow
def test_two_fits_into_one_directory_are_two_runs(make_model, data, tmp_path):
    x, y = data
    monitor = gradstab.callbacks.GradientMonitor(tmp_path)
    model = make_model(gradstab.stabilize("sgd"))
    for epochs in (1, 2):
        model.fit(x, y, epochs=epochs, callbacks=[monitor], verbose=0)
    make_model().fit(x, y, callbacks=[gradstab.callbacks.GradientMonitor(tmp_path)], verbose=0)
    record = read_record(tmp_path)
    assert [run.totals.steps for run in (*record.earlier, record)] == [3, 6, 3]
    assert [len(run.epochs) for run in (*record.earlier, record)] == [1, 2, 1]
    page = write_html(tmp_path).read_text()
    assert "Run 3 of 3 in this record" in page
    assert "Earlier runs in this record (2)" in page
