"""Keras' tests of clipping, which call its private `_clip_gradients`, as steps that are taken.

Of every optimizer class for which Keras has such a test: it is wrapped, takes steps, and what
happened to the gradient is read off the change of the weights.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from common_checks import mirrored, replicated, values_of
from keras_suites.left_out import CLIPPING

import gradstab
from gradstab import transforms
from gradstab.optimizers import StabilizedOptimizer

# By Keras' test: the argument, the transform of the same meaning, the gradient that it clips to 1,
# and what it expects of it.
FORMS = {
    "test_clip_norm": (
        "clipnorm",
        transforms.ClipByNorm,
        [100.0, 100.0],
        [2**0.5 / 2, 2**0.5 / 2],
    ),
    "test_clip_value": ("clipvalue", transforms.ClipByValue, [100.0, 100.0], [1.0, 1.0]),
    "test_global_clip_norm": (
        "global_clipnorm",
        transforms.ClipByGlobalNorm,
        [50.0, 100.0],
        [50 / 12500**0.5, 100 / 12500**0.5],
    ),
}
# Two gradients within every bound, which come after it. Adaptive optimizers divide the first one by
# its own size, clipped or not; from the second on, what is in their moments tells.
WITHIN = ([-0.5, -0.25], [0.3, 0.1])
# Where Keras' tests are not named after the optimizer.
OWNERS = {"Optimizer": "SGD", "OptimizerDistribute": "SGD"}
# With which steps are of the size of the weights: Adadelta's first ones are small.
RATES = {"SGD": 1.0, "Adadelta": 100.0}
WAYS = {
    "taken over": lambda owner, argument, transform, rate: gradstab.stabilize(
        owner(rate, **{argument: 1.0}), clip=None
    ),
    "listed": lambda owner, argument, transform, rate: StabilizedOptimizer(
        owner(rate), [transform(1.0)]
    ),
}


def _changes(optimizer, gradients, num_replicas):
    """Change of the weights in each step; every replica passes its share of each gradient."""
    strategy = mirrored(num_replicas) if num_replicas > 1 else tf.distribute.get_strategy()
    with strategy.scope():
        variable = keras.Variable([1.0, 2.0], name="weights")
    step = replicated(strategy, optimizer, [variable], mode="eager")
    changes = []
    for gradient in gradients:
        before = values_of([variable])[0]
        # The shares differ, so that clipping them, and not their sum, shows.
        part = tf.constant(gradient) * 0.25 if num_replicas > 1 else tf.constant(gradient)
        rest = [[tf.constant(gradient) * 0.75]] if num_replicas > 1 else []
        step([part], *rest)
        changes.append(values_of([variable])[0] - before)
    return changes


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("node", CLIPPING)
def test_change_is_that_of_the_clipped_gradient(node, way):
    _, test_class, test = node.split("::")
    argument, transform, large, clipped = FORMS[test]
    name = test_class.removesuffix("Test")
    owner = getattr(keras.optimizers, OWNERS.get(name, name))
    num_replicas = 2 if name == "OptimizerDistribute" else 1
    rate = RATES.get(owner.__name__, 0.1)

    with mirrored(2).scope() if num_replicas > 1 else tf.distribute.get_strategy().scope():
        optimizer = WAYS[way](owner, argument, transform, rate)
    got = _changes(optimizer, [large, *WITHIN], num_replicas)

    # Keras' optimizer without clipping, given the gradient that Keras' test expects of clipping.
    expected = _changes(owner(rate), [clipped, *WITHIN], 1)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    unclipped = _changes(owner(rate), [large, *WITHIN], 1)
    assert not np.allclose(got, unclipped, rtol=1e-2, atol=1e-3)
    if owner is keras.optimizers.SGD:
        np.testing.assert_allclose(got, -np.array([clipped, *WITHIN]), rtol=1e-6, atol=1e-6)
    assert optimizer.telemetry.read().clipped.tolist() == [True, False, False]


@pytest.mark.parametrize("test", FORMS)
def test_clipping_arguments_are_taken_over_and_given_back(test):
    argument, transform, *_ = FORMS[test]
    optimizer = gradstab.stabilize(keras.optimizers.SGD(1.0, **{argument: 0.1}), clip=None)
    assert repr(optimizer.transforms[0]) == repr(transform(0.1))
    assert getattr(optimizer.inner_optimizer, argument) is None
    assert optimizer.taken_over == {argument: 0.1}
    assert getattr(gradstab.unwrap(optimizer), argument) == 0.1


@pytest.mark.parametrize("other", ["clipvalue", "global_clipnorm"])
def test_two_clipping_arguments_are_refused_by_name_too(other):
    with pytest.raises(ValueError, match=r"Only one of `clipnorm`, `clipvalue` and"):
        gradstab.stabilize(keras.optimizers.SGD(1.0, clipnorm=0.1, **{other: 0.1}))
