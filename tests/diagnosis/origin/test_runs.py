"""What began a bad step, told by runs: in the record, the page, the verdict, in every form."""

import common_checks as checks
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import gradstab
from gradstab.callbacks import DivergenceGuard, GradientMonitor
from gradstab.diagnosis.origin.bad_steps import BadSteps

L = keras.layers
ROWS = 48
X = np.random.default_rng(0).normal(size=(ROWS, 4)).astype("float32")
Y = np.arange(ROWS) % 3
BATCH = {"batch_size": 8, "verbose": 0, "shuffle": False}


class Root(L.Layer):
    """Loses the gradient where its input is not positive."""

    def call(self, x):
        return ops.sqrt(ops.relu(x))


def _net(*between, optimizer=None, **arguments):
    model = keras.Sequential(
        [
            keras.Input((4,)),
            L.Dense(5, "tanh", name="first"),
            *between,
            L.Dense(3, "softmax", name="head", dtype="float32"),
        ]
    )
    optimizer = optimizer or gradstab.stabilize("adam")
    model.compile(optimizer, "sparse_categorical_crossentropy", **arguments)
    return model


def _with_nan(row, column=2):
    x = X.copy()
    x[row, column] = np.nan
    return x


def _origins(folder):
    record = gradstab.monitoring.read_record(folder)
    return [(e.step, e.details) for e in record.events if e.name == "origin"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"steps_per_execution": 4},
        {},
        {"run_eagerly": True},
        {"jit_compile": True},
        {"jit_compile": True, "steps_per_execution": 2},
    ],
    ids=str,
)
@pytest.mark.quick_cases(1)
def test_the_record_and_the_page_name_it(arguments, tmp_path):
    monitor = GradientMonitor(tmp_path, every_n_steps=1)
    _net(**arguments).fit(_with_nan(21), Y, callbacks=[monitor], **BATCH)
    ((step, told),) = _origins(tmp_path)
    assert (step, told["cause"]) == (3, "inputs")
    assert (
        "at step 3: the inputs held NaN or infinity (row 5 of the batch, column 2)"
        in (told["message"])
    )
    gradstab.reports.write_html(tmp_path, tmp_path / "page.html")
    assert "row 5 of the batch, column 2" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_label_under_xla_where_it_is_no_error(tmp_path):
    labels = Y.copy()
    labels[9] = 3
    model = _net(jit_compile=True)
    model.fit(X, labels, callbacks=[GradientMonitor(tmp_path, every_n_steps=1)], **BATCH)
    ((step, told),) = _origins(tmp_path)
    assert (step, told["cause"]) == (2, "labels")
    assert "label 3" in told["message"]


def test_the_verdict_of_the_guard_names_it_in_place_of_a_guess():
    guard = DivergenceGuard(verbose=False)
    _net(Root(name="guilty")).fit(X, Y, callbacks=[guard], **BATCH)
    assert "What began it at step 1: the loss was finite, and layer `guilty` lost" in guard.verdict
    assert "Look at the data" not in guard.verdict


def test_the_guard_and_the_record_of_one_run_both_tell(tmp_path):
    guard, monitor = DivergenceGuard(verbose=False), GradientMonitor(tmp_path)
    _net(Root(name="guilty")).fit(X, Y, callbacks=[guard, monitor], **BATCH)
    assert "`guilty`" in guard.verdict
    ((step, told),) = _origins(tmp_path)
    assert (step, told["cause"], told["layer"]) == (1, "gradient", "guilty")


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("form", [False, "loop", "step"])
def test_train_on_arrays_names_the_example(form, tmp_path):
    gradstab.training.train(
        _net(), _with_nan(21), Y, epochs=1, batch_size=8, seed=1, jit_compile=form, verbose=0,
        run_dir=tmp_path,
    )  # fmt: skip
    ((_, told),) = _origins(tmp_path)
    assert told["cause"] == "inputs"
    assert "column 2, example 21 of the arrays" in told["message"]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("form", [False, "step"])
def test_train_on_a_pipeline(form, tmp_path):
    pipeline = tf.data.Dataset.from_tensor_slices((_with_nan(21), Y)).batch(8)
    gradstab.training.train(
        _net(), pipeline, epochs=1, jit_compile=form, verbose=0, run_dir=tmp_path
    )
    ((step, told),) = _origins(tmp_path)
    assert (step, told["cause"]) == (3, "inputs")
    assert "row 5 of the batch, column 2" in told["message"]


@pytest.mark.slow
def test_a_batch_that_can_not_be_had_is_told_as_not_known(tmp_path):
    inner = keras.optimizers.Adam(gradient_accumulation_steps=2)
    gradstab.training.train(
        _net(optimizer=gradstab.stabilize(inner)), _with_nan(21), Y, epochs=1, batch_size=8, seed=1,
        jit_compile=False, verbose=0, run_dir=tmp_path,
    )  # fmt: skip
    ((_, told),) = _origins(tmp_path)
    assert told["cause"] == "unknown"
    assert "was not kept" in told["message"]


def test_train_raises_with_it():
    with pytest.raises(gradstab.DivergenceError, match="layer `guilty` lost the gradient"):
        gradstab.training.train(
            _net(Root(name="guilty")), X, Y, epochs=1, batch_size=8, jit_compile=False, verbose=0
        )


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("fault", ["layer", "data"])
def test_an_optimizer_that_applies_it_leaves_the_batch_to_be_judged(fault, tmp_path):
    model = _net(*([Root(name="guilty")] if fault == "layer" else []), optimizer="adam")
    x = X if fault == "layer" else _with_nan(21)
    model.fit(x, Y, callbacks=[GradientMonitor(tmp_path, every_n_steps=1)], **BATCH)
    told = _origins(tmp_path)[0][1]
    assert told["cause"] == ("unknown" if fault == "layer" else "inputs")
    if fault == "layer":
        assert "the weights which it began with are gone" in told["message"]


@pytest.mark.slow
@pytest.mark.parametrize("by_train", [False, True])
def test_on_two_replicas(by_train, tmp_path):
    with checks.mirrored(2).scope():
        model = _net(L.BatchNormalization(), Root(name="guilty"))
    if by_train:
        pipeline = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
        with pytest.raises(gradstab.DivergenceError):
            gradstab.training.train(model, pipeline, epochs=1, verbose=0, run_dir=tmp_path)
    else:
        model.fit(X, Y, callbacks=[GradientMonitor(tmp_path)], **BATCH)
    ((step, told),) = _origins(tmp_path)
    assert (step, told["cause"], told["layer"]) == (1, "gradient", "guilty")


def test_a_scale_that_is_being_found_is_no_fault(tmp_path):
    keras.mixed_precision.set_global_policy("mixed_float16")
    model = _net()
    model.optimizer.initial_scale = 2.0**24
    model.fit(X * 100, Y, callbacks=[GradientMonitor(tmp_path)], epochs=2, **BATCH)
    assert model.optimizer.inner_optimizer.telemetry.read().skipped_by_cause["overflow"] > 0
    assert _origins(tmp_path) == []


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("fault", ["layer", "data"])
def test_what_looks_like_a_scale_too_large_and_is_not(fault, tmp_path):
    keras.mixed_precision.set_global_policy("mixed_float16")
    between = [Root(name="guilty")] if fault == "layer" else []
    x = X.copy()
    if fault == "data":
        x[21, 2] = np.inf  # tanh of it is finite, and so is the loss
    _net(*between).fit(x, Y, callbacks=[GradientMonitor(tmp_path)], **BATCH)
    ((_, told),) = _origins(tmp_path)
    assert told["cause"] == ("gradient" if fault == "layer" else "inputs")


class Joined(keras.callbacks.Callback):
    """Has batches kept, and does nothing else."""

    def on_train_begin(self, logs=None):
        self.bad_steps = BadSteps.join(self.model)

    def on_train_end(self, logs=None):
        self.bad_steps.leave()


def test_a_healthy_run_keeps_nothing_and_is_traced_once():
    model, joined = _net(), Joined()
    model.optimizer.build(model.trainable_variables)
    traced = []
    step = model.train_step

    def counted(data):
        traced.append(1)
        return step(data)

    model.train_step = counted
    for _ in range(2):
        model.fit(X, Y, callbacks=[joined], **BATCH)
    assert len(traced) == 1
    assert joined.bad_steps._keeper.take() is None
    assert "make_train_function" not in vars(model)
    assert joined.bad_steps.told() == ""


def test_skips_in_a_row_are_told_from_the_first_on_and_the_same_fault_once():
    class Reading(Joined):
        def on_train_batch_end(self, batch, logs=None):
            self.bad_steps.see(self.model.optimizer.telemetry.peek())

    x, reading = X.copy(), Reading()
    x[8:32, 1] = np.nan
    _net().fit(x, Y, callbacks=[reading], **BATCH)
    assert [each.step for each in reading.bad_steps.found] == [2]
    assert reading.bad_steps.latest.step == 2


def test_inputs_by_name_and_none_for_weights(tmp_path):
    left, right = keras.Input((2,), name="left"), keras.Input((2,), name="right")
    outputs = L.Dense(3, "softmax")(L.Concatenate()([left, right]))
    model = keras.Model({"left": left, "right": right}, outputs)
    model.compile(gradstab.stabilize("adam"), "sparse_categorical_crossentropy")
    x = _with_nan(21)
    data = {"left": x[:, :2], "right": x[:, 2:]}
    model.fit(data, Y, callbacks=[GradientMonitor(tmp_path, every_n_steps=1)], **BATCH)
    ((step, told),) = _origins(tmp_path)
    assert (step, told["cause"]) == (3, "inputs")
    assert "`right` held" in told["message"]
    assert "row 5 of the batch, column 0" in told["message"]


def test_eager_steps_keep_one_batch_and_no_queues(tmp_path):
    model = _net(run_eagerly=True)
    model.fit(_with_nan(10), Y, **BATCH, epochs=2, callbacks=[GradientMonitor(tmp_path)])
    ((step, details),) = _origins(tmp_path)
    assert (step, details["cause"]) == (2, "inputs")
    assert not vars(model)["gradstab_kept_batch"]._queues


def test_a_monitor_records_after_a_run_that_an_exception_ended():
    class Break(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise RuntimeError("broken")

    model = _net(optimizer=keras.optimizers.SGD(0.01))
    watching = [GradientMonitor(), DivergenceGuard("recover", verbose=False)]
    with pytest.raises(RuntimeError, match="broken"):
        model.fit(X, Y, **BATCH, callbacks=[*watching, Break()])
    history = model.fit(X, Y, **BATCH, callbacks=watching).history
    assert np.isfinite(history["grad_norm"]).all()


def test_a_label_of_a_sequence_is_named_by_its_row_and_column(tmp_path):
    steps = np.repeat(X[:, None], 3, axis=1)
    labels = np.zeros((ROWS, 3), int)
    labels[17, 2] = 9
    model = keras.Sequential([keras.Input((3, 4)), L.Dense(5, "softmax")])
    model.compile(gradstab.stabilize("sgd"), "sparse_categorical_crossentropy", jit_compile=True)
    model.fit(steps, labels, **BATCH, callbacks=[GradientMonitor(tmp_path)])
    ((step, details),) = _origins(tmp_path)
    assert (step, details["cause"]) == (3, "labels")
    assert "row 1 of the batch, column 2" in details["message"]
