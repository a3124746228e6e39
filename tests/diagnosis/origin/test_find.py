"""What began a step, found from its batch: every kind, on models that have it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import gradstab
from gradstab.diagnosis.origin.find import OriginFinder

L = keras.layers
X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
Y = np.arange(8) % 3


class Compute(L.Layer):
    """Computes what it is given."""

    def __init__(self, compute, **arguments):
        super().__init__(**arguments)
        self.compute = compute

    def call(self, x):
        return self.compute(x)


def _net(*between, loss="sparse_categorical_crossentropy", **arguments):
    model = keras.Sequential(
        [
            keras.Input((4,)),
            L.Dense(6, "tanh", name="first"),
            *between,
            L.Dense(3, "softmax", name="head", dtype="float32"),
        ]
    )
    model.compile(gradstab.stabilize("adam"), loss, **arguments)
    model.optimizer.build(model.trainable_variables)
    return model


def _find(model, x=X, y=Y, **arguments):
    batch = (tf.constant(x), tf.constant(y), None)
    return OriginFinder(model).find(batch, **arguments)


def _bad(array, *place, value=np.nan):
    array = np.array(array)
    array[place] = value
    return array


def test_an_entry_of_the_inputs():
    origin = _find(_net(), _bad(X, 5, 2))
    assert (origin.kind, origin.row, origin.column, origin.rows) == ("inputs", 5, (2,), 1)


def test_an_entry_of_the_targets():
    targets = _bad(np.eye(3, dtype="float32")[Y], 1, 0, value=np.inf)
    origin = _find(_net(loss="categorical_crossentropy"), y=targets)
    assert (origin.kind, origin.row, origin.column) == ("targets", 1, (0,))


def test_an_entry_that_the_model_replaces_began_nothing():
    clean = Compute(lambda x: ops.where(ops.isnan(x), 0.0, x), name="clean")
    model = keras.Sequential([keras.Input((4,)), clean, L.Dense(3, "softmax", name="head")])
    loss = "sparse_categorical_crossentropy"
    model.compile(gradstab.stabilize("adam"), loss)
    assert _find(model, _bad(X, 5, 2)).kind == "unknown"
    kernel = model.get_layer("head").kernel
    kernel.assign(_bad(kernel.numpy(), 0, 0))
    assert _find(model, _bad(X, 5, 2)).kind == "weights"


def test_a_label_outside_the_classes_without_the_error_of_the_loss():
    origin = _find(_net(), y=_bad(Y, 6, value=3))
    assert (origin.kind, origin.row) == ("labels", 6)
    assert "the label 3, and there are 3 classes, 0 to 2" in str(origin)


def test_a_weight():
    model = _net()
    kernel = model.get_layer("first").kernel
    kernel.assign(_bad(kernel.numpy(), 0, 0))
    origin = _find(model)
    assert (origin.kind, origin.layer, origin.part) == ("weights", "first", kernel.path)


def test_a_moment_came_before_the_weight():
    model = _net()
    bias = model.get_layer("first").bias
    bias.assign(_bad(bias.numpy(), 0))
    moment = next(v for v in model.optimizer.inner_optimizer.variables if "bias" in v.path)
    moment.assign(_bad(moment.numpy(), 0))
    origin = _find(model)
    assert (origin.kind, origin.layer, origin.part) == ("moments", "first", moment.path)


def test_a_moving_statistic_that_is_used():
    norm = L.BatchNormalization(name="norm")
    norm.trainable = False
    model = _net(norm)
    norm.moving_mean.assign(_bad(norm.moving_mean.numpy(), 1))
    origin = _find(model)
    assert (origin.kind, origin.layer, origin.part) == (
        "statistics", "norm", norm.moving_mean.path,
    )  # fmt: skip


FORWARD = {
    "log": lambda x: ops.log(x),
    "division": lambda x: x / (x - x),
    "root": lambda x: ops.sqrt(x),
    "exp": lambda x: ops.exp(100 + x),
    "overflow": lambda x: (x + 2) * 1e30 * 1e30,
    "softmax": lambda x: ops.softmax(ops.where(x > 9, x, -np.inf)),
}
BACKWARD = {
    "root": lambda x: ops.sqrt(ops.relu(x)),
    "power": lambda x: ops.power(ops.relu(x), 0.5),
    "division": lambda x: ops.where(x > 0, 1 / ops.relu(x), 0.0),
}


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("operation", FORWARD)
def test_arithmetic_of_a_layer(operation):
    origin = _find(_net(Compute(FORWARD[operation], name="guilty")))
    assert (origin.kind, origin.layer, origin.operation) == ("layer", "guilty", operation)
    assert origin.phase == "forward"


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("operation", BACKWARD)
def test_a_gradient_that_a_layer_loses(operation):
    origin = _find(_net(L.Dense(5, name="second"), Compute(BACKWARD[operation], name="guilty")))
    assert (origin.kind, origin.layer, origin.operation) == ("gradient", "guilty", operation)


def test_a_layer_inside_another():
    class Block(L.Layer):
        def __init__(self, **arguments):
            super().__init__(**arguments)
            self.inner = Compute(FORWARD["log"], name="inner")

        def call(self, x):
            return self.inner(x)

    origin = _find(_net(Block(name="block")))
    assert (origin.kind, origin.layer, origin.inside) == ("layer", "block", "inner")


def test_a_layer_of_a_model_in_the_model():
    inner = keras.Sequential(
        [keras.Input((6,)), Compute(FORWARD["log"], name="guilty")], name="inner"
    )
    assert _find(_net(inner)).layer == "guilty"


def test_the_loss_function_and_what_it_takes_the_log_of():
    def loss(y, p):
        return -ops.log(ops.relu(p - 2.0))

    origin = _find(_net(loss=loss))
    assert (origin.kind, origin.layer, origin.operation) == ("loss", None, "log")
    assert "of the outputs" in str(origin)
    assert "targets" not in str(origin)


def test_the_gradient_of_the_loss_function():
    def loss(y, p):
        return ops.sqrt(ops.sum(ops.square(p - p)))

    origin = _find(_net(loss=loss))
    assert (origin.kind, origin.layer, origin.phase) == ("gradient", None, "backward")
    assert "the loss function lost the gradient" in str(origin)


@pytest.mark.parametrize("inputs", [1.0, 1e6])
def test_an_overflow_of_float16(inputs):
    keras.mixed_precision.set_global_policy("mixed_float16")
    huge = [Compute(lambda x: x * 300 * 300, name="guilty")] if inputs == 1 else []
    model = _net(*huge)
    origin = _find(model, X * inputs)
    assert (origin.kind, origin.layer) == ("float16", "guilty" if huge else "first")


def test_a_recurrent_layer_whose_weights_are_bad():
    model = keras.Sequential([keras.Input((5, 3)), L.GRU(4, name="gru"), L.Dense(1)])
    model.compile(gradstab.stabilize("adam"), "mse")
    kernel = model.get_layer("gru").cell.recurrent_kernel
    kernel.assign(_bad(kernel.numpy(), 0, 0))
    origin = _find(model, np.ones((2, 5, 3), "float32"), np.ones((2, 1), "float32"))
    assert (origin.kind, origin.layer, origin.part) == ("weights", "gru", kernel.path)


def test_a_step_that_is_finite_is_not_guessed_at():
    origin = _find(_net())
    assert not origin.is_known
    assert "is finite" in str(origin)


def test_after_an_applied_step_the_batch_alone_is_judged():
    assert _find(_net(), _bad(X, 5, 2), was_applied=True).kind == "inputs"
    origin = _find(_net(Compute(FORWARD["log"])), was_applied=True)
    assert not origin.is_known
    assert "weights which it began with are gone" in str(origin)


def test_a_step_that_can_not_be_run_again_says_so():
    origin = _find(_net(), np.ones((8, 7), "float32"))
    assert not origin.is_known
    assert "can't be run again" in str(origin)


def test_nothing_of_the_model_changes():
    model = _net(L.BatchNormalization(), L.Dropout(0.5), Compute(BACKWARD["root"], name="guilty"))
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    before = [np.array(v.numpy()) for v in variables]
    assert _find(model).kind == "gradient"
    for value, variable in zip(before, variables, strict=True):
        np.testing.assert_array_equal(value, variable.numpy())
    assert "apply" not in vars(model.optimizer)
    assert "call" not in vars(model.get_layer("guilty"))


def test_the_same_trace_serves_batches_of_one_shape():
    finder = OriginFinder(_net())
    first, second = (_bad(X, row, 0) for row in (1, 2))
    assert finder.find((tf.constant(first), tf.constant(Y))).row == 1
    traced = finder._traced
    assert finder.find((tf.constant(second), tf.constant(Y))).row == 2
    assert finder._traced is traced
    assert finder.find((tf.constant(second[:4]), tf.constant(Y[:4]))).row == 2
    assert finder._traced is not traced
