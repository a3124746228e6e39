"""What Keras' tests ask private methods of, and how they pass gradients, as steps taken wrapped."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from common_checks import mirrored, values_of

from gradstab import transforms
from gradstab.optimizers import StabilizedOptimizer

CHAINS = {
    "no transforms": list,
    "infinite bound": lambda: [transforms.ClipByGlobalNorm(float("inf"))],
}
every_chain = pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)


# Muon -------------------------------------------------------------------------------------------


def _muon(chain, **arguments):
    return StabilizedOptimizer(keras.optimizers.Muon(**arguments), chain())


@every_chain
def test_muon_treats_excluded_and_flat_variables_as_adamw(chain):
    matrix = [[1.0, 2.0], [3.0, 4.0]]
    names = ("plain", "embedding", "excluded")
    variables = [keras.Variable(matrix, name=name) for name in names]
    variables.append(keras.Variable([1.0, 2.0, 3.0, 4.0], name="flat"))
    gradient = [[1.0, 6.0], [7.0, 2.0]]
    optimizer = _muon(
        chain, learning_rate=0.5, weight_decay=0, adam_weight_decay=0, exclude_layers=["excluded"]
    )
    optimizer.apply([*[tf.constant(gradient)] * 3, tf.constant([1.0, 6.0, 7.0, 2.0])], variables)
    plain, embedding, excluded, flat = values_of(variables)
    # The values of Keras' own tests: an orthogonalized step, and AdamW's first, by the rate.
    muon = [[0.988775, 1.887053], [2.873428, 3.97035]]
    np.testing.assert_allclose(plain, muon, rtol=1e-2, atol=1e-2)
    for adamw in (embedding, excluded):
        np.testing.assert_allclose(adamw, np.array(matrix) - 0.5, rtol=1e-4)
    np.testing.assert_allclose(flat, [0.5, 1.5, 2.5, 3.5], rtol=1e-4)
    # Apart by far more than the tolerances.
    assert np.abs(plain - embedding).max() > 0.3


@every_chain
@pytest.mark.parametrize(
    ("start", "argument"),
    [([[1.0, 2.0], [3.0, 4.0]], "weight_decay"), (2.0, "adam_weight_decay")],
    ids=["muon", "adamw"],
)
def test_muon_decays_weights(chain, start, argument):
    other = {"weight_decay": "adam_weight_decay", "adam_weight_decay": "weight_decay"}[argument]
    variable = keras.Variable(start, name="weights")
    optimizer = _muon(chain, learning_rate=1.0, **{argument: 0.01, other: 0.5})
    optimizer.apply([tf.zeros(variable.shape)], [variable])
    np.testing.assert_allclose(values_of([variable])[0], 0.99 * np.array(start), rtol=1e-6)


# Two replicas -----------------------------------------------------------------------------------


def _change(optimizer, gradient):
    """Change of a weight of 0 when both replicas pass what `gradient()` returns on them."""
    strategy = mirrored(2)
    with strategy.scope():
        variable = keras.Variable(0.0, name="weight")
        optimizer = optimizer()
        optimizer.build([variable])
    strategy.run(lambda: optimizer.apply([gradient()], [variable]))
    return float(variable.numpy())


def test_one_tensor_on_two_replicas_is_a_single_share_in_keras_alone():
    # Why Keras' test of averages runs with `share_of`: it passes one tensor object to both replicas
    # and expects its value, where two objects of equal values give their sum. It is the sum that a
    # wrapped optimizer applies, either way.
    one = tf.constant(1.0)

    def plain():
        return keras.optimizers.SGD(1.0)

    assert _change(plain, lambda: one) == -1.0
    assert _change(plain, lambda: tf.constant(1.0)) == -2.0

    def wrapped():
        return StabilizedOptimizer(plain())

    assert _change(wrapped, lambda: one) == -2.0
    assert _change(wrapped, lambda: tf.constant(1.0)) == -2.0


def test_keras_sums_the_same_tensor_where_it_accumulates():
    # So does Keras itself, once it accumulates: what its test of that expects, wrapped or not.
    one = tf.constant(1.0)

    def accumulating():
        return keras.optimizers.SGD(1.0, gradient_accumulation_steps=2)

    for make in (accumulating, lambda: StabilizedOptimizer(accumulating())):
        strategy = mirrored(2)
        with strategy.scope():
            variable = keras.Variable(0.0, name="weight")
            optimizer = make()
            optimizer.build([variable])
        for _ in range(2):
            strategy.run(lambda o=optimizer, v=variable: o.apply([one], [v]))
        assert float(variable.numpy()) == -2.0
