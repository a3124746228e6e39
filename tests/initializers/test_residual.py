"""Fixup and SkipInit for plain Keras models."""

import keras
import numpy as np
import pytest

from gradstab.functional.depth import fixup_scale
from gradstab.initializers import apply_fixup, apply_skipinit, fixup_initializers


@pytest.mark.parametrize(
    ("number", "length", "expected"),
    [(1, 2, 1.0), (16, 3, 0.5), (100, 2, 0.1), (50, 1, 1.0), (27, 4, 27 ** (-1 / 6))],
)
def test_the_factor_of_the_paper(number, length, expected):
    assert fixup_scale(number, length) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shape", [(400, 300), (3, 3, 40, 50)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_kernels_have_he_deviation_times_the_factor_and_the_last_is_zero(shape, dtype):
    first, second, last = fixup_initializers(num_branches=81, layers_per_branch=3, seed=1)
    expected = np.sqrt(2 / np.prod(shape[:-1])) / 3
    values = [keras.ops.convert_to_numpy(init(shape, dtype)) for init in (first, second, last)]
    for value in values[:2]:
        assert keras.backend.standardize_dtype(value.dtype) == dtype
        np.testing.assert_allclose(value.astype("float32").std(), expected, rtol=0.02)
    assert not values[2].astype("float32").any()
    assert not np.array_equal(values[0], values[1])


def test_a_seed_decides_and_none_leaves_it_to_keras():
    def draw(seed):
        return np.asarray(fixup_initializers(4, 2, seed)[0]((5, 5)))

    np.testing.assert_array_equal(draw(3), draw(3))
    assert not np.array_equal(draw(3), draw(4))
    assert not np.array_equal(draw(None), draw(None))


def test_they_are_keras_own_and_come_back_from_their_config():
    for initializer in fixup_initializers(10, 3, seed=0):
        assert type(initializer).__module__.startswith("keras.")
        again = keras.initializers.deserialize(keras.initializers.serialize(initializer))
        np.testing.assert_array_equal(again((4, 4)), initializer((4, 4)))


def plain_net(norm=False):
    x = inputs = keras.Input((6,))
    branches = []
    for _ in range(16):
        layers = [keras.layers.Dense(200, "relu"), keras.layers.Dense(200), keras.layers.ReLU()]
        layers.append(keras.layers.Dense(6, bias_initializer="ones"))
        if norm:
            layers.append(keras.layers.BatchNormalization())
        branches.append(layers)
        x = keras.layers.add([x, keras.Sequential(layers)(x)])
    head = keras.layers.Dense(3)
    return keras.Model(inputs, [x, head(x)]), branches, head


def test_apply_fixup_to_a_built_model():
    model, branches, head = plain_net()
    apply_fixup([keras.Sequential(branches[0]), *branches[1:]], head, seed=0)
    x = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")
    body, logits = model(x)
    np.testing.assert_array_equal(body, x)
    assert not np.any(logits)
    seen = []
    for first, second, _, last in branches:
        np.testing.assert_allclose(first.kernel.numpy().std(), (2 / 6) ** 0.5 / 2, rtol=0.1)
        np.testing.assert_allclose(second.kernel.numpy().std(), (2 / 200) ** 0.5 / 2, rtol=0.02)
        assert not last.bias.numpy().any()
        seen += [first.kernel.numpy()[0, 0], second.kernel.numpy()[0, 0]]
    assert len(set(map(float, seen))) == 32
    again, others, _ = plain_net()
    apply_fixup(others, seed=0)
    np.testing.assert_array_equal(others[5][0].kernel, branches[5][0].kernel)
    assert np.any(again(x)[1])


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("norm", [False, True])
def test_apply_skipinit_makes_every_block_an_identity_and_keeps_the_rest(norm):
    model, branches, _ = plain_net(norm)
    kept = [layers[0].kernel.numpy() for layers in branches]
    last = branches[0][3].kernel.numpy()
    apply_skipinit(branches)
    x = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")
    np.testing.assert_array_equal(model(x)[0], x)
    for layers, kernel in zip(branches, kept, strict=True):
        np.testing.assert_array_equal(layers[0].kernel, kernel)
    assert np.array_equal(branches[0][3].kernel, last) == norm


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ((0, 2), ValueError, "`num_branches` must be a positive integer"),
        ((2, 0), ValueError, "`layers_per_branch` must be a positive integer"),
        ((2.0, 2), TypeError, "`num_branches` must be a positive integer"),
        ((2, 2, -1), ValueError, "`seed` must be an integer of at least 0"),
    ],
)
def test_bad_numbers(arguments, kind, words):
    with pytest.raises(kind, match=words):
        fixup_initializers(*arguments)


@pytest.mark.parametrize("apply", [apply_fixup, apply_skipinit])
def test_branches_that_hold_nothing_to_set(apply):
    for bad in (None, [], [["dense"]], "dense"):
        with pytest.raises(TypeError, match="`branches` must be a list"):
            apply(bad)
    with pytest.raises(ValueError, match="with a kernel"):
        apply([[keras.layers.ReLU()]])
    with pytest.raises(ValueError, match="built layer"):
        apply([[keras.layers.Dense(3)]])


def test_a_bad_branch_leaves_the_others_as_they_were():
    good = keras.layers.Dense(6)
    good.build((None, 6))
    kernel = good.kernel.numpy()
    for apply in (apply_fixup, apply_skipinit):
        with pytest.raises(ValueError, match="kernel"):
            apply([[good], [keras.layers.ReLU()]])
        np.testing.assert_array_equal(good.kernel, kernel)
