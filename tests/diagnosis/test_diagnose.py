"""`gradstab.diagnose` on small real models: what it names, and that it leaves all as it was."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradstab

L = keras.layers
X = np.random.default_rng(0).normal(size=(256, 6)).astype("float32")
Y = (X[:, 0] + X[:, 1] > 0).astype("float32")


def net(activation="sigmoid", optimizer=None, loss="binary_crossentropy", *, extra=(), units=1):
    layers = [keras.Input((6,)), L.Dense(16, "relu", name="hidden"), *extra]
    model = keras.Sequential([*layers, L.Dense(units, activation, name="out")])
    model.compile(optimizer or keras.optimizers.Adam(1e-2), loss, metrics=["accuracy"])
    return model


def diagnose(model, x=X, y=Y, **options):
    """A short trial is enough for what is not about the trial."""
    return gradstab.diagnose(model, x, y, **{"probe_steps": 30, **options})


def named(diagnosis):
    return [each.code for each in diagnosis.roots]


def state(model):
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    return [each.numpy() for each in variables]


def numpy_state():
    return np.random.get_state()[1].tolist()  # noqa: NPY002  the global one is meant


def test_a_healthy_model_is_left_alone():
    diagnosis = gradstab.diagnose(net(), X, Y, epochs=20)
    assert diagnosis.ok
    assert diagnosis.looks.trial.plan.merit > 0.5
    assert "Nothing is wrong" in str(diagnosis)


def test_the_cause_of_a_sick_one_is_named():
    model = net(optimizer=keras.optimizers.SGD(1e-4))
    diagnosis = gradstab.diagnose(model, X, Y, epochs=20)
    assert named(diagnosis)[0] == "learning-rate-too-low"
    assert diagnosis.roots[0].evidence["factor"] > 1


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("trained", [False, True])
def test_variables_and_random_states_are_as_before(trained):
    model = net(extra=[L.BatchNormalization(), L.Dropout(0.5)])
    if trained:
        model.fit(X, Y, epochs=1, verbose=0)
    before, python, numpy = state(model), random.getstate(), numpy_state()
    tensorflow = tf.random.get_global_generator().state.numpy()
    diagnose(model, epochs=3)
    after = state(model)
    assert [a.tobytes() for a in before] == [b.tobytes() for b in after]
    assert random.getstate() == python
    assert numpy_state() == numpy
    np.testing.assert_array_equal(tf.random.get_global_generator().state, tensorflow)


def test_training_goes_as_it_would_have_gone():
    losses = []
    for is_diagnosed in (False, True):
        keras.utils.clear_session()
        keras.utils.set_random_seed(3)
        model = net(extra=[L.Dropout(0.3)])
        if is_diagnosed:
            diagnose(model, epochs=2)
        losses.append(model.fit(X, Y, epochs=2, verbose=0).history["loss"])
    assert losses[0] == losses[1]


def test_the_state_comes_back_when_a_look_fails():
    class Broken(L.Layer):
        def call(self, x, training=None):
            if training:
                raise RuntimeError("not in training")
            return x

    model = net(extra=[Broken()])
    before = state(model)
    with pytest.raises(RuntimeError, match="not in training"):
        diagnose(model)
    assert [a.tobytes() for a in before] == [b.tobytes() for b in state(model)]


def test_a_wrapped_optimizer_is_diagnosed_as_it_is():
    diagnosis = diagnose(net(optimizer=gradstab.stabilize("adam", learning_rate=1e-2)))
    assert diagnosis.looks.structure.optimizer == "Adam"
    assert diagnosis.looks.trial.plan is not None


def test_a_schedule_is_scaled_as_a_whole():
    schedule = keras.optimizers.schedules.CosineDecay(1e-4, 200)
    diagnosis = gradstab.diagnose(net(optimizer=keras.optimizers.SGD(schedule)), X, Y, epochs=20)
    assert diagnosis.looks.structure.is_scheduled
    assert named(diagnosis)[0] == "learning-rate-too-low"


def test_mixed_precision_is_diagnosed():
    keras.config.set_dtype_policy("mixed_float16")
    diagnosis = diagnose(net(optimizer="adam"))
    assert diagnosis.looks.structure.precision == "mixed_float16"
    assert diagnosis.looks.trial.error == ""
    assert "float16-underflow" not in [each.code for each in diagnosis.findings]


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = L.Dense(16, "relu", name="hidden")
        self.out = L.Dense(1, "softmax", name="out")

    def call(self, x):
        return self.out(self.hidden(x))


def test_a_subclassed_model_that_is_not_built_is_built_and_seen():
    model = Subclassed()
    model.compile("adam", "binary_crossentropy")
    diagnosis = diagnose(model)
    assert named(diagnosis)[0] == "single-unit-softmax"
    assert diagnosis.roots[0].layer == "out"


def test_several_inputs_and_outputs():
    a, b = keras.Input((6,), name="a"), keras.Input((3,), name="b")
    trunk = L.Concatenate()([L.Dense(8, "relu")(a), L.Dense(8, "relu")(b)])
    outputs = {"class": L.Dense(1, "softmax", name="class")(trunk), "size": L.Dense(1)(trunk)}
    model = keras.Model({"a": a, "b": b}, outputs)
    model.compile("adam", {"class": "binary_crossentropy", "size": "mse"})
    diagnosis = diagnose(model, {"a": X, "b": X[:, :3]}, {"class": Y, "size": X[:, 0]})
    assert [each.name for each in diagnosis.looks.data.inputs] == ["a", "b"]
    assert (diagnosis.roots[0].code, diagnosis.roots[0].layer) == (
        "single-unit-softmax", "class",
    )  # fmt: skip


class Rows(keras.utils.PyDataset):
    def __len__(self):
        return 8

    def __getitem__(self, place):
        rows = slice(32 * place, 32 * place + 32)
        return X[rows], Y[rows]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    "make",
    [
        lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(32),
        lambda: Rows(),
        lambda: [(X[:32], Y[:32]), (X[32:64], Y[32:64])],
    ],
    ids=["tf.data", "PyDataset", "list of batches"],
)
def test_data_in_batches(make):
    data = make()
    diagnosis = diagnose(net(), data, None, epochs=2)
    assert diagnosis.looks.data.batch_size == 32
    assert diagnosis.looks.data.steps_per_epoch == len(data)


def test_a_generator_is_told_of_for_it_can_not_be_wound_back():
    batches = ((X[at : at + 32], Y[at : at + 32]) for at in (0, 32))
    diagnosis = diagnose(net(), batches, None)
    told = [each.cause for each in diagnosis.findings if each.code == "unchecked"]
    assert "generator" in told[0]


def test_sample_weights_are_taken():
    diagnosis = diagnose(net(), sample_weight=np.ones(len(X), "float32"))
    assert diagnosis.looks.trial.error == ""


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X, Y[:100]), ValueError, "must have the same number of rows"),
        ((X[:0], Y[:0]), ValueError, "`x` must hold at least one row"),
        (([], None), ValueError, "must"),
        ((iter([]), None), ValueError, "`x` must give at least one batch"),
        ((7, None), TypeError, "`x` must be arrays"),
        ((tf.data.Dataset.from_tensor_slices((X, Y)).batch(8), Y), ValueError, "must be left out"),
    ],
)  # fmt: skip
def test_data_that_can_not_be_right_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        gradstab.diagnose(net(), *arguments)


def test_what_can_not_be_diagnosed_is_refused():
    model = keras.Sequential([keras.Input((6,)), L.Dense(1)])
    with pytest.raises(ValueError, match=r"`model` must be compiled.*Call `model.compile"):
        gradstab.diagnose(model, X, Y)
    with pytest.raises(TypeError, match=r"`model` must be a `keras\.Model`"):
        gradstab.diagnose(L.Dense(1), X, Y)
    with pytest.raises(ValueError, match="`mute` must be a list of codes"):
        gradstab.diagnose(net(), X, Y, mute=["no-such-code"])
    with pytest.raises(ValueError, match="`epochs` must be a positive integer"):
        gradstab.diagnose(net(), X, Y, epochs=0)


def test_without_targets_it_says_what_was_not_checked():
    diagnosis = diagnose(net(), X, None)
    assert any("no targets" in each.cause for each in diagnosis.findings)


def test_muted_codes_are_left_out():
    model = net("softmax")
    assert "single-unit-softmax" in named(diagnose(model))
    assert "single-unit-softmax" not in named(diagnose(model, mute=["single-unit-softmax"]))


def test_a_training_step_of_ones_own_is_told_of():
    class Own(keras.Sequential):
        def train_step(self, data):
            return {}

    model = Own([keras.Input((6,)), L.Dense(1, "sigmoid")])
    model.compile("adam", "binary_crossentropy")
    diagnosis = diagnose(model)
    assert "training step of its own" in diagnosis.looks.trial.skipped
    assert any(each.code == "unchecked" for each in diagnosis.findings)


def test_the_origin_of_nan_is_placed():
    model = net(extra=[L.Lambda(lambda t: keras.ops.log(t - 1), name="log")])
    finding = diagnose(model).roots[0]
    assert (finding.code, finding.layer) == ("nonfinite-forward", "log")


def test_rows_that_are_mixed_are_found():
    def fold(t):
        return keras.ops.reshape(keras.ops.transpose(t), (-1, 16))

    model = net(extra=[L.Lambda(fold, output_shape=(16,), name="fold")])
    finding = diagnose(model).roots[0]
    assert (finding.code, finding.layer) == ("wrong-shape", "fold")
