"""Coefficients that change in a running, compiled `fit`, and where they are kept."""

import copy
import pickle

import common_checks as checks
import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab.regularizers import L1, L1L2, L2, Orthogonal, SpectralNorm

ALL = {
    "l1": lambda: L1(0.5),
    "l2": lambda: L2(0.5),
    "l1l2": lambda: L1L2(0.5, 0.25),
    "orthogonal": lambda: Orthogonal("srip", 0.5, num_iterations=3, seed=2),
    "spectral_norm": lambda: SpectralNorm(0.5, num_iterations=3, seed=2),
}
every = pytest.mark.parametrize("make", ALL.values(), ids=ALL)


def doubled(regularizer):
    for name in regularizer.coefficients():
        setattr(regularizer, name, 2 * getattr(regularizer, name))


def zero_input_model(regularizer, layers=1, **arguments):
    """A model of 4×4 kernels of twos, whose only gradient is that of the penalty."""
    model = keras.Sequential([keras.Input((4,))])
    for _ in range(layers):
        model.add(
            keras.layers.Dense(
                4, use_bias=False, kernel_initializer=twos, kernel_regularizer=regularizer
            )
        )
    model.compile(keras.optimizers.SGD(0.1), "mse", **arguments)
    return model


@keras.saving.register_keras_serializable(package="tests")
def twos(shape, dtype=None):
    return 2.0 * keras.ops.eye(*shape, dtype=dtype)


ZEROS = np.zeros((8, 4), "float32")


class Change(keras.callbacks.Callback):
    """Sets a coefficient before each batch."""

    def __init__(self, regularizer, values):
        super().__init__()
        self.regularizer, self.values = regularizer, iter(values)

    def on_train_batch_begin(self, batch, logs=None):
        self.regularizer.l2 = next(self.values)


@pytest.mark.parametrize(
    "arguments",
    [{"run_eagerly": True}, {"jit_compile": False}, {"jit_compile": True}],
    ids=checks.MODES,
)
def test_a_change_acts_in_the_next_step_and_traces_nothing(arguments):
    regularizer = L2(1.0)
    model = zero_input_model(regularizer, layers=2, **arguments)
    calls = []
    compute_loss = model.compute_loss
    model.compute_loss = lambda *args, **kwargs: calls.append(1) or compute_loss(*args, **kwargs)
    values = [1.0, 0.1, 0.0, 2.5]
    model.fit(ZEROS, ZEROS, batch_size=2, callbacks=[Change(regularizer, values)], verbose=0)
    # w <- w - 0.1 * 2 * l2 * w, for both layers that share it.
    expected = 2.0 * np.prod([1 - 0.2 * value for value in values])
    for kernel in model.trainable_variables:
        np.testing.assert_allclose(kernel.numpy(), expected * np.eye(4), rtol=1e-6)
    assert len(calls) == (4 if arguments.get("run_eagerly") else 1)
    assert regularizer.l2 == 2.5


@every
def test_no_variable_of_it_is_a_weight(make, tmp_path):
    model = zero_input_model(make())
    assert [weight.name for weight in model.weights] == ["kernel"]
    assert len(model.variables) == 1
    model.save_weights(tmp_path / "ours.weights.h5")
    plain = zero_input_model(None)
    plain.load_weights(tmp_path / "ours.weights.h5")
    plain.save_weights(tmp_path / "plain.weights.h5")
    model.load_weights(tmp_path / "plain.weights.h5")
    stored = tf.train.list_variables(
        tf.train.Checkpoint(model=model).save(str(tmp_path / "checkpoint"))
    )
    kept = [name for name, _ in stored if "optimizer" not in name and "VARIABLE_VALUE" in name]
    of_plain = tf.train.list_variables(
        tf.train.Checkpoint(model=plain).save(str(tmp_path / "plain"))
    )
    assert kept == [
        name for name, _ in of_plain if "optimizer" not in name and "VARIABLE_VALUE" in name
    ]


@every
def test_a_keras_file_holds_the_value_of_the_moment(make, tmp_path):
    regularizer = make()
    model = zero_input_model(regularizer)
    doubled(regularizer)
    config = regularizer.get_config()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    again = loaded.layers[0].kernel_regularizer
    assert type(again) is type(regularizer)
    assert again.get_config() == config
    assert float(loaded.losses[0]) == pytest.approx(float(model.losses[0]), rel=1e-6)
    doubled(again)
    assert float(loaded.losses[0]) == pytest.approx(2 * float(model.losses[0]), rel=1e-6)


@every
@pytest.mark.parametrize(
    "duplicate",
    [
        copy.deepcopy,
        copy.copy,
        lambda regularizer: pickle.loads(pickle.dumps(regularizer)),
        lambda regularizer: type(regularizer).from_config(regularizer.get_config()),
        lambda regularizer: (
            keras.models.clone_model(zero_input_model(regularizer)).layers[0].kernel_regularizer
        ),
    ],
    ids=["deepcopy", "copy", "pickle", "from_config", "clone_model"],
)
def test_a_copy_has_the_value_and_goes_its_own_way(make, duplicate):
    regularizer = make()
    doubled(regularizer)
    kernel = np.diag([3.0, 1.0]).astype("float32")
    before = float(regularizer(kernel))
    other = duplicate(regularizer)
    assert other.get_config() == regularizer.get_config()
    assert repr(other) == repr(regularizer)
    assert float(other(kernel)) == before
    doubled(other)
    assert float(other(kernel)) == pytest.approx(2 * before, rel=1e-6)
    assert float(regularizer(kernel)) == before


@every
def test_config_round_trip(make):
    regularizer = make()
    restored = keras.regularizers.deserialize(keras.regularizers.serialize(regularizer))
    assert type(restored) is type(regularizer)
    assert restored.get_config() == regularizer.get_config()
    name = type(regularizer).__name__
    assert keras.saving.get_registered_object(f"gradstab>{name}") is type(regularizer)
    assert repr(regularizer).startswith(f"{name}(")


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("inside_scope", [True, False])
def test_it_acts_once_and_alike_on_every_replica(inside_scope):
    strategy = checks.mirrored(2)
    if not inside_scope:
        regularizer = L2(1.0)
    with strategy.scope():
        if inside_scope:
            regularizer = L2(1.0)
        model = zero_input_model(regularizer)
    values = [1.0, 0.1, 0.0, 2.5]
    model.fit(ZEROS, ZEROS, batch_size=2, callbacks=[Change(regularizer, values)], verbose=0)
    expected = 2.0 * np.prod([1 - 0.2 * value for value in values])
    np.testing.assert_allclose(model.layers[0].kernel.numpy(), expected * np.eye(4), rtol=1e-6)
    checks.same_on_all_replicas(model.trainable_variables)


def test_a_layer_may_be_built_within_the_step():
    """A variable that is made in a trace ends with it."""
    made = []

    class Lazy(keras.layers.Layer):
        def build(self, shape):
            made.append(L2(1.0))
            self.kernel = self.add_weight(shape=(shape[-1],), regularizer=made[-1])

        def call(self, x):
            return x * self.kernel

    model = keras.Sequential([Lazy()])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(ZEROS, ZEROS, batch_size=4, verbose=0)
    before = model.layers[0].kernel.numpy()
    made[-1].l2 = 5.0
    model.fit(ZEROS, ZEROS, batch_size=8, verbose=0)
    assert np.any(before)
    np.testing.assert_allclose(model.layers[0].kernel.numpy(), 0.0, atol=1e-6)


def test_a_coefficient_that_is_zero_can_be_switched_on():
    regularizer = L1L2(l2=0.5)
    penalty = tf.function(regularizer)
    kernel = tf.constant([[1.0, -3.0]])
    assert float(penalty(kernel)) == 5.0
    regularizer.l1 = 0.25
    assert float(penalty(kernel)) == 6.0
    assert penalty.experimental_get_tracing_count() == 1


def test_the_number_comes_back_as_it_was_given():
    assert (L1(0.1).l1, L1L2(0.1, 0.3).l2, Orthogonal(coefficient=0.7).coefficient) == (
        0.1,
        0.3,
        0.7,
    )


@every
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), 1e39, 1e-46])
def test_a_change_that_is_no_coefficient_changes_nothing(make, value):
    regularizer = make()
    before = regularizer.get_config()
    name = regularizer.coefficients()[0]
    with pytest.raises(ValueError, match=f"`{name}` must be.*Received: {name}"):
        setattr(regularizer, name, value)
    assert regularizer.get_config() == before
