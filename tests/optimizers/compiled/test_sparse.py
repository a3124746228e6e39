"""Embedding gradients: duplicate rows count as one, as the dense gradient has them."""

import common_checks as checks
import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab import transforms
from gradstab.optimizers import StabilizedOptimizer, stabilize
from gradstab.optimizers.compiled.sparse import split_sparse

OPTIMIZERS = [
    keras.optimizers.SGD,
    keras.optimizers.Adam,
    keras.optimizers.RMSprop,
    keras.optimizers.Adagrad,
]
ROWS = [3, 1, 3, 3]
VALUES = np.array([[1.0, -2.0], [0.5, 3.0], [1.0, 1.0], [0.1, 0.2]], "float32")
SUMMED = np.zeros((5, 2), "float32")
np.add.at(SUMMED, ROWS, VALUES)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("optimizer_class", OPTIMIZERS)
def test_duplicate_rows_give_the_dense_result(optimizer_class):
    def run(gradient):
        weights = checks.make_variables()[:1]
        optimizer = StabilizedOptimizer(
            optimizer_class(0.1), [transforms.SkipNonFinite(), transforms.ClipByGlobalNorm(2.0)]
        )
        step, _ = checks.stepper(optimizer, weights, "graph")
        for _ in range(3):
            step(gradient)
        return weights[0].numpy(), optimizer.telemetry.peek().grad_norm

    (got, norm), (expected, dense_norm) = (
        run(gradient) for gradient in (checks.sparse(ROWS, VALUES, (5, 2)), tf.constant(SUMMED))
    )
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(norm, dense_norm, rtol=1e-6)
    np.testing.assert_allclose(norm, np.linalg.norm(SUMMED), rtol=1e-6)


def test_xla_gives_the_same():
    weights = checks.make_variables()[:1]
    step, _ = checks.stepper(stabilize(keras.optimizers.SGD(1.0), clip=None), weights, "xla")
    before = weights[0].numpy()
    step(checks.sparse(ROWS, VALUES, (5, 2)))
    np.testing.assert_allclose(before - weights[0].numpy(), SUMMED, rtol=1e-5, atol=1e-6)


def test_a_real_embedding_in_fit():
    words = np.array([[1, 1, 2], [1, 0, 1], [4, 4, 4], [2, 1, 4]])
    y = np.array([[1.0], [0.0], [1.0], [0.0]])

    def trained(optimizer):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((3,), dtype="int32"),
                keras.layers.Embedding(5, 3),
                keras.layers.Flatten(),
                keras.layers.Dense(1),
            ]
        )
        model.compile(optimizer, "mse")
        model.fit(words, y, epochs=2, shuffle=False, verbose=0)
        return model.get_weights()

    # Plain gradient descent adds duplicates up by itself; the reference for the wrapped one.
    plain = trained(keras.optimizers.SGD(0.1))
    for got, expected in zip(trained(stabilize("sgd", 1e9, learning_rate=0.1)), plain, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_loss_scale_factor_unscales_sparse_gradients():
    """Keras itself fails here: an `IndexedSlices` can't be divided with `/`."""
    weights = [keras.Variable(np.zeros((5, 2)))]
    optimizer = stabilize(keras.optimizers.SGD(1.0, loss_scale_factor=8.0), clip=None)
    optimizer.apply([checks.sparse(ROWS, 8 * VALUES, (5, 2))], weights)
    np.testing.assert_allclose(weights[0].numpy(), -SUMMED, rtol=1e-6)


def test_half_precision_rows_are_summed_in_float32():
    many = tf.IndexedSlices(tf.ones((4096, 1), tf.float16), tf.zeros(4096, tf.int32), (2, 1))
    (values,), (rows,) = split_sparse([many])
    assert float(values[0, 0]) == 4096.0  # float16 alone ends at 2048
    assert np.count_nonzero(values) == 1
    assert set(rows.numpy().tolist()) == {0}


def test_a_gradient_without_rows():
    weights = [keras.Variable(np.ones((5, 2)))]
    optimizer = stabilize("sgd")
    empty = tf.IndexedSlices(tf.zeros((0, 2)), tf.zeros((0,), tf.int32), (5, 2))
    optimizer.apply([empty], weights)
    np.testing.assert_array_equal(weights[0].numpy(), np.ones((5, 2)))
    assert optimizer.telemetry.peek().grad_norm.tolist() == [0.0]


@pytest.mark.parametrize(("xla", "kinds"), [(False, {"Case"}), (True, {"If"})])
def test_xla_is_given_choices_between_two(xla, kinds):
    """Of a choice between several it interprets all that leads there: minutes for a transformer."""
    variable = keras.Variable(np.ones((5, 2), "float32"))
    optimizer = stabilize(keras.optimizers.SGD(0.1), clip=1.0)
    optimizer.build([variable])

    @tf.function(jit_compile=xla)
    def step(rows, values):
        gradient = tf.IndexedSlices(values, rows, dense_shape=tf.constant([5, 2]))
        optimizer.apply([gradient], [variable])

    graph = step.get_concrete_function(tf.constant([1, 1]), tf.ones((2, 2))).graph
    assert {node.op for node in checks.nodes_of(graph)} & {"Case", "If"} == kinds
