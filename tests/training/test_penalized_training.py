"""Penalties in `fit` and `train`: added once, shown in the logs, in nothing that is saved."""

import json

import common_checks as checks
import keras
import numpy as np
import pytest
import tensorflow as tf
from graph_races import unordered

from gradstab import stabilize, unwrap
from gradstab.regularizers import L2
from gradstab.training import (
    GradientPenalty,
    JacobianPenalty,
    Penalty,
    RecurrentGradientNorm,
    set_penalties,
    train,
)
from gradstab.training.penalized import penalties_of

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(12, 3)).astype("float32")
Y = DRAW.normal(size=(12, 2)).astype("float32")
RATE, COEFFICIENT = 0.1, 0.5


class WeightSize(Penalty):
    """A term of the weights alone, as a person would write it: the sum of their squares."""

    def measure(self, forward):
        return tf.add_n([tf.reduce_sum(tf.square(v)) for v in forward.model.trainable_variables])


def make(kind="sequential", optimizer=None, seed=0, **arguments):
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Dense(4, "tanh", name="a"), keras.layers.Dense(2, name="b")]
    if kind == "sequential":
        model = keras.Sequential([keras.Input((3,)), *layers])
    elif kind == "functional":
        inputs = keras.Input((3,))
        model = keras.Model(inputs, layers[1](layers[0](inputs)))
    else:

        class Subclassed(keras.Model):
            def __init__(self):
                super().__init__()
                self.a, self.b = layers

            def call(self, x):
                return self.b(self.a(x))

        model = Subclassed()
    model.compile(optimizer or keras.optimizers.SGD(RATE), "mse", **arguments)
    if kind == "subclassed":
        model(X)
    return model


PENALTIES = {
    "inputs": lambda: GradientPenalty(COEFFICIENT),
    "weights": lambda: GradientPenalty(COEFFICIENT, "weights"),
    "weights without squares": lambda: GradientPenalty(COEFFICIENT, "weights", squared=False),
    "jacobian": lambda: JacobianPenalty(COEFFICIENT),
    "jacobian exactly": lambda: JacobianPenalty(COEFFICIENT, None),
    "a class of one's own": lambda: WeightSize(COEFFICIENT),
}
QUICK = ("weights", "jacobian")
every = pytest.mark.parametrize(
    "penalty",
    [
        pytest.param(penalty, id=name, marks=[] if name in QUICK else pytest.mark.slow)
        for name, penalty in PENALTIES.items()
    ],
)


def fitted(model, penalties, **arguments):
    set_penalties(model, penalties)
    given = {"batch_size": 4, "epochs": 2, "shuffle": False, "verbose": 0, **arguments}
    return model, model.fit(X, Y, **given).history


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("kind", ["sequential", "functional", "subclassed"])
def test_one_step_is_that_of_loss_and_penalty_together(kind):
    model = make(kind)
    begin = [variable.numpy() for variable in model.trainable_variables]
    plain = make(kind)
    plain.train_on_batch(X, Y)
    fitted(model, [WeightSize(COEFFICIENT)], batch_size=12, epochs=1)
    for new, old, without in zip(
        model.trainable_variables, begin, plain.trainable_variables, strict=True
    ):
        expected = without.numpy() - RATE * COEFFICIENT * 2 * old
        np.testing.assert_allclose(new.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.quick_cases(1)
@every
def test_every_way_to_run_a_step_gives_the_same(penalty):
    expected, logs = fitted(make(run_eagerly=True), [penalty()])
    for arguments in (
        {"jit_compile": False},
        {"jit_compile": False, "steps_per_execution": 3},
        {"jit_compile": True},
    ):
        model, other = fitted(make(**arguments), [penalty()])
        checks.close(model.trainable_variables, expected.trainable_variables)
        assert other.keys() == logs.keys()
        for name in logs:
            np.testing.assert_allclose(other[name], logs[name], rtol=1e-4)


@pytest.mark.quick_cases(1)
@every
def test_in_train_as_in_fit(penalty):
    expected, logs = fitted(make(), [penalty()], batch_size=12)
    for form in (False, True, "loop"):
        model = make()
        history = train(
            model, (X, Y), epochs=2, batch_size=12, penalties=[penalty()], jit_compile=form,
            seed=0, verbose=0,
        ).history  # fmt: skip
        # The examples stand in another order, in which the random directions fall otherwise.
        if not isinstance(penalty(), JacobianPenalty) or penalty().num_projections is None:
            checks.close(model.trainable_variables, expected.trainable_variables)
        assert history.keys() == logs.keys()
        assert penalties_of(model) == []


@pytest.mark.quick_cases(1)
@every
def test_two_replicas_take_the_step_of_one(penalty):
    expected, logs = fitted(make(), [penalty()])
    with checks.mirrored(2).scope():
        model = make()
    model, other = fitted(model, [penalty()])
    checks.close(model.trainable_variables, expected.trainable_variables)
    checks.same_on_all_replicas(model.trainable_variables)
    for name in logs:
        np.testing.assert_allclose(other[name], logs[name], rtol=1e-5)


@pytest.mark.quick_cases(1)
@every
def test_uneven_shares_take_the_step_of_one(penalty):
    """Batches of 5 go as 2 and 3 to two replicas, and the last as 1 and 1."""
    trained = []
    for strategy in (tf.distribute.get_strategy(), checks.mirrored(2)):
        with strategy.scope():
            trained.append(make())
        train(
            trained[-1], (X, Y), epochs=1, batch_size=5, penalties=[penalty()], jit_compile=False,
            seed=0, verbose=0,
        )  # fmt: skip
    checks.close(trained[1].trainable_variables, trained[0].trainable_variables)


def recurrent(**arguments):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((5, 3)), keras.layers.SimpleRNN(4), keras.layers.Dense(2)]
    )
    model.compile(keras.optimizers.SGD(RATE), "mse", **arguments)
    return set_penalties(model, [RecurrentGradientNorm(1.0)])


@pytest.mark.slow
def test_omega_on_two_replicas_and_in_every_mode():
    x = np.random.default_rng(1).normal(size=(8, 5, 3)).astype("float32")
    expected = recurrent(run_eagerly=True)
    others = [recurrent(jit_compile=False), recurrent(jit_compile=True)]
    with checks.mirrored(2).scope():
        others.append(recurrent())
    for model in (expected, *others):
        model.fit(x, Y[:8], batch_size=4, shuffle=False, verbose=0)
    for model in others:
        checks.close(model.trainable_variables, expected.trainable_variables)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("penalty", [RecurrentGradientNorm, GradientPenalty, JacobianPenalty])
def test_every_weight_is_read_before_it_is_updated(penalty):
    """Ω off by up to 1 % now and then: TensorFlow dropped what held its reads before the update.

    A race shows once in thousands of steps, so its cause is looked for, in the graph that runs.
    """
    model = set_penalties(recurrent(jit_compile=False), [penalty(1.0)])
    x = np.ones((8, 5, 3), "float32")
    assert not unordered(lambda: model.fit(x, Y[:8], batch_size=4, verbose=0))


class Change(keras.callbacks.Callback):
    def __init__(self, owner, values, name="coefficient"):
        super().__init__()
        self.owner, self.values, self.name = owner, values, name

    def on_epoch_begin(self, epoch, logs=None):
        setattr(self.owner, self.name, self.values[epoch])


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_coefficient_acts_while_fit_runs_and_nothing_is_traced_again(jit_compile):
    traces = []

    class Counted(Penalty):
        def measure(self, forward):
            traces.append(1)
            return tf.reduce_sum(tf.square(forward.model.trainable_variables[0]))

    penalty = Counted(1.0)
    model = make(jit_compile=jit_compile)
    kernel = model.layers[0].kernel
    model.layers[1].trainable = False
    model.layers[1].set_weights([np.zeros((4, 2)), np.zeros(2)])  # the loss has no gradient
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=jit_compile)
    before = kernel.numpy()
    values = [1.0, 0.0, 2.0]
    callback = Change(penalty, values)
    _, logs = fitted(model, [penalty], epochs=3, batch_size=12, callbacks=[callback])
    shrunk = np.cumprod([1.0] + [1 - 0.2 * value for value in values])
    np.testing.assert_allclose(kernel.numpy(), shrunk[-1] * before, rtol=1e-5)
    # The log is what was added to the loss, before the step.
    expected = np.array(values) * shrunk[:3] ** 2 * np.sum(before**2)
    np.testing.assert_allclose(logs["counted"], expected, rtol=1e-5)
    assert len(traces) == 1


def test_the_logs_of_training_show_each_and_those_of_evaluation_none():
    penalties = [GradientPenalty(0.1), JacobianPenalty(0.2), GradientPenalty(0.3, "weights")]
    names = ["gradient_penalty", "jacobian_penalty", "gradient_penalty_1"]
    for arguments in ({}, {"run_eagerly": True}):
        model, logs = fitted(make(metrics=["mae"], **arguments), penalties, validation_data=(X, Y))
        assert sorted(logs) == sorted(["loss", "mae", "val_loss", "val_mae", *names])
        # Nothing is added to the loss of an evaluation.
        evaluated = model.evaluate(X, Y, verbose=0, return_dict=True)
        assert sorted(evaluated) == ["loss", "mae"]
        assert evaluated["loss"] == pytest.approx(np.mean((model.predict(X, verbose=0) - Y) ** 2))
        assert logs["val_loss"][-1] == pytest.approx(evaluated["loss"])


@pytest.mark.parametrize("runs", ["fit", "train"])
def test_the_loss_is_logged_with_what_is_added(runs):
    model = make()
    begin = np.mean((model.predict(X, verbose=0) - Y) ** 2)
    size = sum(np.sum(variable.numpy() ** 2) for variable in model.trainable_variables)
    if runs == "fit":
        _, logs = fitted(model, [WeightSize(COEFFICIENT)], batch_size=12, epochs=1)
    else:
        penalties = [WeightSize(COEFFICIENT)]
        arguments = {"batch_size": 12, "epochs": 1, "verbose": 0, "validation_data": (X, Y)}
        logs = train(model, (X, Y), penalties=penalties, **arguments).history
        assert sorted(logs) == ["loss", "val_loss", "weight_size"]
    assert logs["weight_size"] == [pytest.approx(COEFFICIENT * size, rel=1e-5)]
    assert logs["loss"] == [pytest.approx(begin + COEFFICIENT * size, rel=1e-5)]


@pytest.mark.slow
def test_files_know_nothing_of_penalties(tmp_path, run_python):
    model, _ = fitted(make(optimizer="adam"), [GradientPenalty(0.1), JacobianPenalty(0.2)])
    plain = make(optimizer="adam")
    plain.fit(X, Y, verbose=0)
    assert [v.name for v in model.variables] == [v.name for v in plain.variables]
    assert len(model.metrics_variables) == len(plain.metrics_variables)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    plain.load_weights(tmp_path / "model.weights.h5")
    checks.close(plain.variables, model.variables, 0.0)
    code = """
import sys, keras, numpy as np
model = keras.models.load_model(sys.argv[1])
assert not any(name.startswith("gradstab") for name in sys.modules)
x = np.load(sys.argv[2])
print(sorted(model.fit(x, x[:, :2], verbose=0).history))
"""
    np.save(tmp_path / "x.npy", X)
    assert run_python(code, tmp_path / "model.keras", tmp_path / "x.npy") == "['loss']"
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    assert penalties_of(loaded) == []
    again, logs = fitted(loaded, [JacobianPenalty(0.2)])
    assert "jacobian_penalty" in logs
    tf.train.Checkpoint(model=again).save(str(tmp_path / "checkpoint"))


def test_taking_them_away_leaves_the_model_as_it_was():
    model = make()
    attributes = set(vars(model))
    set_penalties(model, [WeightSize(1.0)])
    set_penalties(model, [JacobianPenalty(1.0)])
    assert [type(penalty) for penalty in penalties_of(model)] == [JacobianPenalty]
    _, logs = fitted(model, [])
    assert list(logs) == ["loss"]
    replaced = {"compute_loss", "get_metrics_result", "reset_metrics", "train_step"}
    assert not replaced & set(vars(model))
    assert not any("gradstab" in name for name in set(vars(model)) - attributes)
    plain, _ = fitted(make(), [])
    checks.close(model.trainable_variables, plain.trainable_variables, 0.0)


def test_unwrap_takes_them_away():
    model = set_penalties(make(optimizer=stabilize("sgd")), [WeightSize(1.0)])
    unwrap(model)
    assert penalties_of(model) == []
    assert list(fitted(model, [])[1]) == ["loss"]


@pytest.mark.slow
def test_changed_between_and_within_runs_they_act_at_once():
    model = make()
    _, first = fitted(model, [JacobianPenalty()])
    _, second = fitted(model, [GradientPenalty()])
    model.compile("sgd", "mse", metrics=["mae"])
    third = model.fit(X, Y, verbose=0).history
    assert [sorted(logs) for logs in (first, second, third)] == [
        ["jacobian_penalty", "loss"],
        ["gradient_penalty", "loss"],
        ["gradient_penalty", "loss", "mae"],
    ]


@pytest.mark.parametrize(
    ("policy", "runs"),
    [
        ("mixed_float16", "fit"),
        pytest.param("mixed_float16", "train", marks=pytest.mark.slow),
        pytest.param("mixed_bfloat16", "fit", marks=pytest.mark.slow),
        pytest.param("mixed_bfloat16", "train", marks=pytest.mark.slow),
        pytest.param("float16", "fit", marks=pytest.mark.slow),
    ],
)
def test_half_precision_with_loss_scaling(policy, runs):
    keras.config.set_dtype_policy(policy)
    penalties = [penalty() for penalty in PENALTIES.values()]
    model = make(optimizer=stabilize("sgd", learning_rate=0.01))
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (
        policy == "mixed_float16"
    )
    begin = model.get_weights()
    arguments = {"epochs": 4, "batch_size": 12, "verbose": 0}
    if runs == "fit":
        model, logs = fitted(model, penalties, **arguments)
    else:
        logs = train(model, (X, Y), penalties=penalties, seed=0, **arguments).history
    assert len(logs) == 1 + len(penalties)
    assert np.all(np.isfinite(list(logs.values())))
    keras.config.set_dtype_policy("float32")
    exact = make()
    exact.set_weights(begin)
    _, expected = fitted(exact, penalties, batch_size=12, epochs=1)
    tolerance = 0.01 if policy.removeprefix("mixed_") == "float16" else 0.1
    for name, values in expected.items():
        # The first step, rounded. `train` shuffles, so that examples get other directions.
        if runs == "fit" or name != "jacobian_penalty":
            assert logs[name][0] == pytest.approx(values[0], rel=tolerance)


def test_accumulated_micro_batches_take_the_step_of_the_whole_batch():
    """For terms that are means over examples."""
    penalties = [GradientPenalty(0.5), JacobianPenalty(0.5, None), WeightSize(0.1)]
    whole, _ = fitted(make(), penalties, batch_size=12, epochs=1)
    parts = make(
        optimizer=stabilize(keras.optimizers.SGD(RATE, gradient_accumulation_steps=3), clip=None)
    )
    fitted(parts, penalties, batch_size=4, epochs=1)
    checks.close(parts.trainable_variables, whole.trainable_variables)


def test_models_with_steps_and_losses_of_their_own():
    class Own(keras.Sequential):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return 2.0 * super().compute_loss(x, y, y_pred, sample_weight, training=training)

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True), None)
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply(gradients, self.trainable_variables)
            return {"own": loss}

    def make_own():
        keras.utils.set_random_seed(0)
        model = Own([keras.Input((3,)), keras.layers.Dense(2)])
        model.compile(keras.optimizers.SGD(RATE), "mse")
        return model

    model = make_own()
    begin = model.trainable_variables[0].numpy()
    plain, _ = fitted(make_own(), [], batch_size=12, epochs=1)
    _, logs = fitted(model, [WeightSize(COEFFICIENT)], batch_size=12, epochs=1)
    expected = plain.trainable_variables[0].numpy() - RATE * COEFFICIENT * 2 * begin
    np.testing.assert_allclose(model.trainable_variables[0].numpy(), expected, rtol=1e-5)
    assert list(logs) == ["own"]
    trained = make_own()
    history = train(
        trained,
        (X, Y),
        epochs=1,
        batch_size=12,
        penalties=[WeightSize(COEFFICIENT)],
        monitor="own",
        monitor_mode="min",
        verbose=0,
    )
    assert list(history.history) == ["own"]
    np.testing.assert_allclose(trained.trainable_variables[0].numpy(), expected, rtol=1e-5)


class GoesPast(keras.Sequential):
    def train_step(self, data):
        return {"loss": tf.constant(0.0)}


class WithoutTraining(keras.Sequential):
    def compute_loss(self, x, y, y_pred, sample_weight=None):
        return super().compute_loss(x, y, y_pred, sample_weight)


def test_a_step_that_goes_past_the_penalties_is_refused():
    model = GoesPast([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"GoesPast\.train_step, which does not call it"):
        fitted(model, [WeightSize()])


@pytest.mark.parametrize(
    ("penalties", "error", "message"),
    [
        (JacobianPenalty(), TypeError, "`penalties` must be a list of penalties"),
        ("jacobian", TypeError, "penalties='jacobian'"),
        ([JacobianPenalty], TypeError, "write its name with ()"),
        ([L2(0.1)], TypeError, "goes to a layer, as its `kernel_regularizer`"),
        ([lambda model: 0.0], TypeError, "Derive a class from gradstab.training.Penalty"),
        ([None], TypeError, "Received: None"),
        ([RecurrentGradientNorm()], ValueError, "no recurrent layer"),
    ],
)
@pytest.mark.parametrize("taken_by", ["set_penalties", "train"])
def test_penalties_that_can_not_be_right(penalties, error, message, taken_by, tmp_path):
    model = make()
    take = {
        "train": lambda: train(
            model, (X, Y), epochs=1, penalties=penalties, run_dir=tmp_path / "run"
        ),
        "set_penalties": lambda: set_penalties(model, penalties),
    }[taken_by]
    with pytest.raises(error) as raised:
        take()
    assert message in str(raised.value)
    assert penalties_of(model) == []
    assert not (tmp_path / "run").exists()
    assert not model.optimizer.built


def test_models_and_lists_that_can_not_be_right():
    penalty = WeightSize()
    with pytest.raises(ValueError, match="each penalty once"):
        set_penalties(make(), [penalty, penalty])
    with pytest.raises(TypeError, match=r"must be a keras\.Model"):
        set_penalties(keras.layers.Dense(1), [penalty])
    with pytest.raises(ValueError, match=r"WithoutTraining\.compute_loss without it"):
        set_penalties(WithoutTraining([keras.layers.Dense(1)]), [penalty])
    model = set_penalties(make(), [penalty])
    with pytest.raises(ValueError, match="for a model that has some already"):
        train(model, (X, Y), epochs=1, penalties=[WeightSize()], verbose=0)
    assert "weight_size" in train(model, (X, Y), epochs=1, verbose=0).history


class Halve(keras.callbacks.Callback):
    """Changes coefficients in the course of a run, and ends it when told to."""

    def __init__(self, owners, stop_after=None):
        super().__init__()
        self.owners, self.stop_after = owners, stop_after

    def on_epoch_end(self, epoch, logs=None):
        for owner, name in self.owners:
            setattr(owner, name, 0.5 * getattr(owner, name))

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.stop_after:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_killed_and_resumed_ends_bit_for_bit_where_the_whole_run_does(tmp_path, same_state):
    def run(directory, resume=False, stop_after=None):
        keras.utils.set_random_seed(0)
        regularizer, jacobian = L2(0.1), JacobianPenalty(0.4)
        weights = GradientPenalty(0.2, "weights")
        model = keras.Sequential(
            [
                keras.Input((3,)),
                keras.layers.Dense(4, "tanh", kernel_regularizer=regularizer),
                keras.layers.Dropout(0.3),
                keras.layers.Dense(2),
            ]
        )
        model.compile(keras.optimizers.Adam(0.01), "mse")
        owners = [(regularizer, "l2"), (jacobian, "coefficient")]
        arguments = {"epochs": 4, "batch_size": 4, "seed": 0, "jit_compile": False, "verbose": 0}
        history = train(
            model,
            (X, Y),
            run_dir=directory,
            resume=resume,
            callbacks=[Halve(owners, stop_after)],
            penalties=[jacobian, weights],
            **arguments,
        )
        return model, history.history, [getattr(*owner) for owner in owners]

    whole, logs, coefficients = run(tmp_path / "whole")
    assert coefficients == [0.1 / 16, 0.4 / 16]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", stop_after=2)
    state = json.loads((tmp_path / "killed/checkpoints/state.json").read_text())
    assert state["coefficients"] == [0.1 / 4, 0.4 / 4, 0.2]
    resumed, logs_of_resumed, of_resumed = run(tmp_path / "killed", resume=True)
    assert of_resumed == coefficients
    assert logs_of_resumed == logs
    assert same_state(whole, resumed)


def test_a_run_is_not_resumed_with_other_penalties(tmp_path):
    arguments = {"epochs": 1, "run_dir": tmp_path, "seed": 0, "verbose": 0}
    train(make(), (X, Y), penalties=[JacobianPenalty(0.1)], **arguments)
    arguments |= {"epochs": 2, "resume": True}
    with pytest.raises(ValueError, match=r"penalties was .*0\.1.* is .*0\.2"):
        train(make(), (X, Y), penalties=[JacobianPenalty(0.2)], **arguments)
    with pytest.raises(ValueError, match="model's penalties was"):
        train(make(), (X, Y), **arguments)


def test_a_step_that_is_skipped_counts_no_weight_change():
    """What a penalty makes of bad data is vetoed with the step."""
    model = make(optimizer=stabilize("sgd"))
    bad = X.copy()
    bad[5] = np.nan
    set_penalties(model, [GradientPenalty(0.1), JacobianPenalty(0.1)])
    before = checks.contents(model.trainable_variables)
    model.fit(bad, Y, batch_size=12, verbose=0)
    assert model.optimizer.telemetry.peek().total_skipped == 1
    assert not checks.differences(before, checks.contents(model.trainable_variables))


class Tracing(WeightSize):
    """Counts how often it is traced; `power` is a number that tracing takes in."""

    def __init__(self, coefficient=0.1, power=1):
        super().__init__(coefficient)
        self.power, self.traced = power, 0

    def measure(self, forward):
        self.traced += 1
        return super().measure(forward) ** self.power


def test_a_second_call_with_the_same_penalties_traces_nothing():
    def run(model, *penalties):
        for each in penalties:
            each.traced = 0
        train(model, X, Y, penalties=penalties, epochs=1, batch_size=6, seed=0, verbose=0)
        return [each.traced > 0 for each in penalties], model.get_weights()

    penalty, other = Tracing(), Tracing(0.0)
    kept, anew = make(), make()
    assert run(kept, penalty)[0] == [True]
    penalty.coefficient = 0.5
    traced, weights = run(kept, penalty)
    assert traced == [False]
    assert penalties_of(kept) == []
    run(anew, Tracing())
    for one, expected in zip(weights, run(anew, Tracing(0.5))[1], strict=True):
        np.testing.assert_array_equal(one, expected)
    penalty.power = 2
    assert run(kept, penalty)[0] == [True]
    assert run(kept, penalty, other)[0] == [True, True]
    kept.compile("sgd", "mse")
    assert run(kept, penalty, other)[0] == [True, True]
