"""What is known of the steps of Keras' optimizers."""

import keras
import pytest

from gradstab import optimizers
from gradstab.optimizers.step.learning_rate import momentum


def _several(*optimizers):
    """An optimizer for each of so many variables."""
    several = keras.optimizers.MultiOptimizer(lambda variable: optimizers[int(variable.name)])
    several.build([keras.Variable(0.0, name=str(place)) for place in range(len(optimizers))])
    return several


def test_the_momentum_of_sgd():
    assert momentum(keras.optimizers.SGD(0.01)) == 0.0
    assert momentum(keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True)) == 0.9


def test_of_several_sgd_the_largest():
    parts = [keras.optimizers.SGD(0.01, momentum=each) for each in (0.5, 0.8)]
    assert momentum(_several(*parts)) == 0.8


@pytest.mark.parametrize(
    "optimizer",
    [
        keras.optimizers.Adam(0.01),
        keras.optimizers.RMSprop(0.01, momentum=0.9),
        optimizers.StableAdamW(0.01),
        _several(keras.optimizers.Adam(0.01), keras.optimizers.SGD(0.01)),
    ],
    ids=lambda each: type(each).__name__,
)
def test_of_others_it_is_not_known(optimizer):
    assert momentum(optimizer) is None
