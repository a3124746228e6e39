"""`SkipNonFinite`: what it judges, and that no number of bad steps gets through."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab import optimizers, transforms

CLIPS = [
    transforms.ClipByValue,
    transforms.ClipByNorm,
    transforms.ClipByGlobalNorm,
]


def _step(chain, gradient):
    weight = keras.Variable(np.zeros(2))
    optimizer = optimizers.StabilizedOptimizer(keras.optimizers.SGD(1.0), chain)
    optimizer.apply([tf.constant(gradient, "float32")], [weight])
    return weight.numpy(), optimizer.telemetry.peek()


def test_the_finite_gate():
    """Published sequence: what others apply after n failures in a row is never applied."""
    weight = keras.Variable(np.zeros(1))
    optimizer = optimizers.StabilizedOptimizer(
        keras.optimizers.SGD(1.0), [transforms.SkipNonFinite(max_consecutive=2)]
    )
    good, bad = tf.constant([1.0]), tf.constant([np.nan])
    held = []
    for gradient in (good, bad, bad, good, bad, bad, bad):
        optimizer.apply([gradient], [weight])
        held.append(float(weight.numpy()[0]))
    assert held == [-1.0, -1.0, -1.0, -2.0, -2.0, -2.0, -2.0]
    reading = optimizer.telemetry.peek()
    assert reading.skipped.tolist() == [False, True, True, False, True, True, True]
    assert int(optimizer.iterations) == 2
    for _ in range(100):
        optimizer.apply([bad], [weight])
    assert float(weight.numpy()[0]) == -2.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("first", ["clip", "skip"])
def test_a_clip_hides_nothing(first, clip, bad):
    chain = [clip(1.0), transforms.SkipNonFinite()]
    weight, reading = _step(chain if first == "clip" else chain[::-1], [1.0, bad])
    np.testing.assert_array_equal(weight, [0.0, 0.0])
    assert reading.cause == ["nonfinite"]


def test_squares_that_overflow_are_judged_after_all_transforms():
    huge = [1e20, 1e20]  # finite, and infinite as a second moment
    weight, reading = _step([transforms.SkipNonFinite()], huge)
    np.testing.assert_array_equal(weight, [0.0, 0.0])
    assert reading.skipped.tolist() == [True]
    assert reading.bad_variable == [None]
    for chain in itertools.permutations([transforms.SkipNonFinite, transforms.ClipByGlobalNorm]):
        chain = [t() if t is transforms.SkipNonFinite else t(1.0) for t in chain]
        weight, reading = _step(chain, huge)
        np.testing.assert_allclose(weight, [-(0.5**0.5)] * 2, rtol=1e-6)
        assert reading.skipped.tolist() == [False]


def test_half_precision_is_judged_in_float32():
    weight = keras.Variable(np.zeros(4), dtype="float16")
    optimizer = optimizers.StabilizedOptimizer(
        keras.optimizers.SGD(0.001), [transforms.SkipNonFinite()]
    )
    optimizer.apply([tf.fill([4], tf.constant(304.0, tf.float16))], [weight])
    np.testing.assert_allclose(weight.numpy(), np.full(4, -0.304), rtol=1e-3)


def test_two_in_one_chain_count_a_skip_once():
    chain = [transforms.SkipNonFinite(3), transforms.SkipNonFinite(5)]
    _, reading = _step(chain, [np.nan, 0.0])
    assert reading.total_skipped == 1
    assert reading.skipped_by_cause == {"nonfinite": 1}


@pytest.mark.parametrize("clip", CLIPS)
def test_clips_alone_skip_nothing(clip):
    weight, reading = _step([clip(1.0)], [1.0, np.nan])
    assert np.isnan(weight).any()
    assert reading.total_skipped == 0
    assert reading.divergence.skipped == 0
