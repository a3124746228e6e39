"""The Keras initializers under our name: the same classes, with the variances that we document."""

import keras
import numpy as np
import pytest

from gradstab import initializers


def test_the_names_are_keras_own_classes():
    for name in initializers.__all__:
        assert getattr(initializers, name) is getattr(keras.initializers, name)


# A 3x3 convolution from 64 to 128 channels, so that the fans and their mean all differ.
FAN_IN, FAN_OUT = 3 * 3 * 64, 3 * 3 * 128


@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("HeNormal", 2 / FAN_IN),
        ("HeUniform", 2 / FAN_IN),
        ("GlorotNormal", 2 / (FAN_IN + FAN_OUT)),
        ("GlorotUniform", 2 / (FAN_IN + FAN_OUT)),
        ("LecunNormal", 1 / FAN_IN),
        ("LecunUniform", 1 / FAN_IN),
    ],
)
def test_documented_variance(name, variance):
    values = getattr(initializers, name)(seed=1)((3, 3, 64, 128))
    values = keras.ops.convert_to_numpy(values)

    # The standard error of a variance from 73,728 values is at most 0.5 %.
    assert values.var() == pytest.approx(variance, rel=0.025)
    assert abs(values.mean()) < 5 * np.sqrt(variance / values.size)


def test_orthogonal_keeps_lengths():
    kernel = keras.ops.convert_to_numpy(initializers.Orthogonal(gain=2.0, seed=1)((48, 32)))
    np.testing.assert_allclose(kernel.T @ kernel, 4.0 * np.eye(32), atol=1e-5)
