"""The guard takes back what went wrong and has the run go on, in `fit` and in `training.train`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradstab
from gradstab.callbacks import DivergenceGuard, GradientMonitor

EPOCHS, STEPS = 6, 20
NAN = float("nan")


@pytest.fixture(scope="module")
def data():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(STEPS * 16, 8)).astype("float32")
    return x, (x @ draw.normal(size=(8, 1)) + 1.0).astype("float32")


def make_model(optimizer=None, normalized=True, **arguments):
    keras.utils.set_random_seed(4)
    hidden = [keras.layers.Dense(16, name="first")]
    hidden += [keras.layers.BatchNormalization(name="bn")] * normalized
    layers = [*hidden, keras.layers.Activation("tanh"), keras.layers.Dense(1, name="last")]
    model = keras.Sequential([keras.Input((8,)), *layers])
    model.compile(optimizer or keras.optimizers.Adam(0.01), "mse", **arguments)
    return model


class Strike(keras.callbacks.Callback):
    """Does something to the model before one step."""

    def __init__(self, step, act):
        super().__init__()
        self.step, self.act, self.seen = step, act, 0

    def on_train_batch_begin(self, batch, logs=None):
        if self.seen == self.step:
            self.act(self.model)
        self.seen += 1


def recovering(**arguments):
    return DivergenceGuard("recover", snapshot_every_n_steps=10, verbose=False, **arguments)


def run(how, model, data, callbacks, epochs=EPOCHS):
    if how == "fit":
        arguments = {"batch_size": 16, "epochs": epochs, "verbose": 0, "callbacks": callbacks}
        return model.fit(*data, **arguments).history
    arguments = {"batch_size": 16, "epochs": epochs, "verbose": 0, "callbacks": callbacks}
    return gradstab.training.train(model, data, seed=1, jit_compile=False, **arguments).history


def _nan(find):
    def act(model):
        variable = find(model)
        variable.assign(variable * NAN)

    return act


def _moment(model):
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    return next(v for v in optimizer.variables if tuple(v.shape) == (8, 16))


def _faster(model):
    model.optimizer.learning_rate = float(model.optimizer.learning_rate) * 1e6


FAULTS = {
    "weights": (_nan(lambda m: m.get_layer("last").kernel), "nonfinite_state"),
    "moments": (_nan(_moment), "nonfinite_state"),
    "statistics": (_nan(lambda m: m.get_layer("bn").moving_mean), "nonfinite_state"),
    "rate": (_faster, None),
}


@pytest.mark.quick_cases(1)
@pytest.mark.filterwarnings("ignore:.*were limited or skipped:UserWarning")
@pytest.mark.parametrize(
    ("how", "fault", "ours"),
    [
        *(("fit", fault, ours) for fault in FAULTS for ours in (True, False)),
        ("train", "weights", True),
        ("train", "rate", False),
    ],
)
def test_a_run_goes_on_as_good_as_new(data, how, fault, ours):
    def model():
        adam = keras.optimizers.Adam(0.01)
        return make_model(gradstab.stabilize(adam) if ours else adam)

    act, code = FAULTS[fault]
    guard, clean, struck = recovering(), model(), model()
    run(how, clean, data, [])
    history = run(how, struck, data, [guard, Strike(63, act)])
    assert [action.name for action in guard.actions][:1] == ["rollback"]
    assert code in (None, guard.actions[0].kind)
    assert guard.verdict is None
    assert len(history["loss"]) == EPOCHS
    assert np.isfinite(history["loss"][-1])
    assert float(struck.optimizer.learning_rate) == pytest.approx(0.01)
    best = clean.evaluate(*data, verbose=0)
    assert struck.evaluate(*data, verbose=0) < 3 * best + 0.05


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("how", ["fit", "train"])
@pytest.mark.parametrize("ours", [True, False])
def test_a_healthy_run_ends_bit_for_bit_as_without(data, how, ours):
    ends = []
    for callbacks in ([], [recovering()]):
        adam = keras.optimizers.Adam(0.01)
        model = make_model(gradstab.stabilize(adam) if ours else adam)
        run(how, model, data, callbacks, epochs=3)
        ends.append([w.tobytes() for w in model.get_weights()])
        assert all(callback.actions == [] for callback in callbacks)
    assert ends[0] == ends[1]


def test_what_was_dropped_shows_in_no_log(data):
    """An epoch without a step has no loss: 0 would be the best that there is."""
    model, guard = make_model(metrics=["mae"]), recovering()
    history = run("fit", model, data, [guard, Strike(70, FAULTS["weights"][0])])
    assert len(guard.actions) >= 1
    for values in history.values():
        assert all(value > 0 or np.isnan(value) for value in values)
        assert np.isfinite(values[-1])


def test_a_rate_too_high_is_cut_until_it_holds(data):
    model = make_model(keras.optimizers.SGD(2.0), normalized=False)
    guard = recovering()
    history = run("fit", model, data, [guard], epochs=8)
    assert guard.verdict is None
    assert "of the learning rate" in guard.actions[0].message
    assert history["loss"][-1] < 3.0


def test_a_scheduled_rate_is_cut_and_the_schedule_comes_back(data):
    schedule = keras.optimizers.schedules.ExponentialDecay(2.0, 1000, 0.9)
    for how in ("fit", "train"):
        model = make_model(keras.optimizers.SGD(schedule), normalized=False)
        guard = recovering()
        history = run(how, model, data, [guard], epochs=8)
        assert guard.verdict is None
        assert history["loss"][-1] < 3.0
        assert model.optimizer.get_config()["learning_rate"]["class_name"] == "ExponentialDecay"


class Again(keras.callbacks.Callback):
    """Spoils the weights again and again."""

    def on_train_batch_end(self, batch, logs=None):
        FAULTS["weights"][0](self.model)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("how", ["fit", "train"])
def test_when_nothing_helps_the_run_stops_with_the_rule_and_the_best_state(data, how, capsys):
    model = make_model(gradstab.stabilize("adam"))
    run(how, model, data, [], epochs=1)
    before = [w.tobytes() for w in model.get_weights()]
    guard = DivergenceGuard("recover", snapshot_every_n_steps=10, max_rollbacks=2)
    run(how, model, data, [guard, Again()])
    assert guard.code == "nonfinite-gradients"
    assert "It came back after 2 rollbacks" in guard.verdict
    assert sum(action.name == "rollback" for action in guard.actions) == 2
    assert [w.tobytes() for w in model.get_weights()] == before
    assert guard.verdict in capsys.readouterr().out


def test_batches_that_are_all_bad_stop_the_run_at_once(data):
    x, y = data
    model = make_model(gradstab.stabilize("adam", max_consecutive=15))
    guard = recovering()
    run("fit", model, (x * NAN, y), [guard])
    assert guard.code == "nonfinite-gradients"
    assert guard.actions == []


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("first", [True, False])
def test_the_record_tells_what_was_done(data, tmp_path, first):
    model, guard = make_model(), recovering()
    callbacks = [GradientMonitor(tmp_path, every_n_steps=5), guard]
    callbacks = callbacks if first else callbacks[::-1]
    run("fit", model, data, [*callbacks, Strike(63, FAULTS["weights"][0])])
    record = gradstab.monitoring.read_record(tmp_path)
    told = [e for e in record.events if e.name in ("rollback", "recovered")]
    assert [event.step for event in told] == [action.step for action in guard.actions]
    assert told[0].details["cause"] == "nonfinite_state"
    assert told[0].details["message"] == guard.actions[0].message
    page = gradstab.reports.write_html(tmp_path, tmp_path / "page.html").read_text("utf-8")
    assert "rolled back: nonfinite_state" in page


def _others(order, folder):
    callbacks = keras.callbacks
    others = [
        callbacks.EarlyStopping("loss", patience=3, restore_best_weights=True),
        callbacks.ModelCheckpoint(folder / "best.keras", monitor="loss", save_best_only=True),
        callbacks.BackupAndRestore(folder / "backup"),
    ]
    guard = recovering()
    return guard, [guard, *others] if order == "first" else [*others, guard]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("order", ["first", "last"])
@pytest.mark.parametrize("how", ["fit", "train"])
def test_peace_with_callbacks_that_stop_and_save(data, how, order, tmp_path):
    model = make_model()
    guard, callbacks = _others(order, tmp_path)
    history = run(how, model, data, [*callbacks, Strike(63, FAULTS["weights"][0])])
    assert len(history["loss"]) == EPOCHS
    assert guard.verdict is None
    saved = keras.models.load_model(tmp_path / "best.keras")
    assert all(np.isfinite(weights).all() for weights in saved.get_weights())
    assert saved.evaluate(*data, verbose=0) < 1.0


def test_a_backup_is_restored_before_the_first_snapshot(data, tmp_path):
    class KilledError(Exception):
        """Ends a run as an interrupt does."""

    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 3:
                raise KilledError

    folder = tmp_path / "backup"
    model = make_model()
    with pytest.raises(KilledError):
        run("fit", model, data, [recovering(), keras.callbacks.BackupAndRestore(folder), Kill()])
    kept = [w.tobytes() for w in model.get_weights()]
    again, guard = make_model(), recovering()
    strike = Strike(4, FAULTS["weights"][0])
    seen = []
    look = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: seen.append([w.tobytes() for w in again.get_weights()])
    )
    backup = keras.callbacks.BackupAndRestore(folder)
    run("fit", again, data, [guard, backup, strike, look])
    assert seen[0] == kept
    assert "back at step 0" in guard.actions[0].message
    assert again.evaluate(*data, verbose=0) < 1.0


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("ours", [True, False])
def test_a_model_with_a_step_and_optimizers_of_its_own_goes_back_by_its_state(data, ours):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)
            sgd = keras.optimizers.SGD(0.05)
            self.own_optimizer = gradstab.stabilize(sgd) if ours else sgd

        def call(self, x):
            return self.dense(x)

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = keras.ops.mean((self(x) - y) ** 2)
            gradients = tape.gradient(loss, self.trainable_variables)
            self.own_optimizer.apply(gradients, self.trainable_variables)
            return {"loss": loss}

    model, guard = Own(), recovering()
    model(data[0][:1])
    model.compile(optimizer=None)
    model.own_optimizer.build(model.trainable_variables)
    history = run("fit", model, data, [guard, Strike(63, _nan(lambda m: m.dense.kernel))])
    assert [action.kind for action in guard.actions][:1] == ["nonfinite_state"]
    assert history["loss"][-1] < 1.0


def test_arguments_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="`max_rollbacks` must be"):
        DivergenceGuard("recover", max_rollbacks=0)
    with pytest.raises(TypeError, match="`snapshot_every_n_steps` must be"):
        DivergenceGuard("recover", snapshot_every_n_steps=1.5)
