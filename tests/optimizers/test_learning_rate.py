"""What the steps of Keras' optimizers depend on."""

import keras
import numpy as np
import pytest

from gradstab import optimizers
from gradstab.optimizers.learning_rate import is_scale_invariant, moves_by_rate

CLASSES = [
    each
    for each in vars(keras.optimizers).values()
    if isinstance(each, type) and issubclass(each, keras.optimizers.Optimizer)
]
# Wrap or combine others, or are the class that all extend.
NOT_ALONE = (
    keras.optimizers.Optimizer,
    keras.optimizers.LossScaleOptimizer,
    keras.optimizers.MultiOptimizer,
)
ALONE = [each for each in dict.fromkeys(CLASSES) if each not in NOT_ALONE]


def _change(optimizer, scale):
    draw = np.random.default_rng(0)
    weight = keras.Variable(np.ones((4, 3), "float32"))
    optimizer.build([weight])
    for _ in range(5):
        gradient = scale * draw.uniform(0.5, 1.5, (4, 3)).astype("float32")
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [weight])
    return weight.numpy() - 1


@pytest.mark.parametrize("make", ALONE, ids=lambda each: each.__name__)
def test_whether_steps_are_as_long_with_longer_gradients(make):
    # Long ones, beside which the constants that keep divisions finite are small.
    short, long = (_change(make(learning_rate=0.01), scale) for scale in (1e3, 4e3))
    assert np.abs(short).max() > 1e-6
    same = np.linalg.norm(long - short) < 0.02 * np.linalg.norm(short)
    assert is_scale_invariant(make(learning_rate=0.01)) == same


@pytest.mark.parametrize("make", ALONE, ids=lambda each: each.__name__)
def test_whether_each_weight_changes_by_about_the_rate(make):
    # Late enough for averages over all steps to be slow, at weights of two sizes.
    shares = []
    for size in (1.0, 30.0):
        optimizer = make(learning_rate=0.01)
        draw = np.random.default_rng(0)
        weight = keras.Variable(np.full((40, 30), size, "float32"))
        optimizer.build([weight])
        for _ in range(60):
            before = weight.numpy()
            gradient = 1e3 * draw.uniform(0.5, 1.5, (40, 30)).astype("float32")
            optimizer.apply([keras.ops.convert_to_tensor(gradient)], [weight])
        shares.append(np.abs(weight.numpy() - before).mean() / 0.01)
    assert moves_by_rate(make(learning_rate=0.01)) == all(0.6 < each < 1.5 for each in shares)


@pytest.mark.parametrize("make", [optimizers.StableAdamW, optimizers.SPAM])
def test_optimizers_that_extend_adam_are_as_it_is(make):
    assert is_scale_invariant(make(0.01))
    assert moves_by_rate(make(0.01))


def test_one_part_that_is_not_decides_for_all():
    adam, sgd = keras.optimizers.Adam(0.01), keras.optimizers.SGD(0.01)
    mixed = keras.optimizers.MultiOptimizer({"a": adam, "b": sgd, "default": sgd})
    assert not is_scale_invariant(mixed)
    assert not moves_by_rate(mixed)
