import numpy as np
import pytest
import references
import tensorflow as tf

from gradstab import functional

CLIPS = {
    "clip_by_value": (functional.clip_by_value, references.clip_by_value),
    "clip_by_norm": (functional.clip_by_norm, references.clip_by_norm),
    "clip_by_global_norm": (functional.clip_by_global_norm, references.clip_by_global_norm),
}
clips = pytest.mark.parametrize(("clip", "reference"), CLIPS.values(), ids=CLIPS)


def _values(scale=1.0, dtype="float32"):
    draw = np.random.default_rng(0)
    return [(scale * draw.normal(size=shape)).astype(dtype) for shape in [(4, 3), (3,), ()]]


def test_published_clip_of_the_pair():
    pair = [np.array([500.0, 5.0]), np.array([300.0, 3.0])]
    first, second = functional.clip_by_global_norm(pair, 1.0)
    np.testing.assert_allclose(first, [0.85745005, 0.0085745], rtol=1e-6)
    np.testing.assert_allclose(second, [0.51447003, 0.0051447], rtol=1e-6)


@clips
@pytest.mark.parametrize("bound", [0.01, 0.5, 2.0, 1e6])
def test_against_numpy(clip, reference, bound):
    values = _values()
    for got, expected in zip(clip(values, bound), reference(values, bound), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("bound", [0.5, 2.0])
def test_against_tensorflow(bound):
    values = [tf.constant(value) for value in _values()]
    expected, _ = tf.clip_by_global_norm(values, bound)
    for got, other in zip(functional.clip_by_global_norm(values, bound), expected, strict=True):
        np.testing.assert_allclose(got, other, rtol=1e-6)
    for got, value in zip(functional.clip_by_norm(values, bound), values, strict=True):
        np.testing.assert_allclose(got, tf.clip_by_norm(value, bound), rtol=1e-6)


@clips
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_an_infinite_bound_returns_every_bit(clip, reference, dtype):
    values = [tf.cast(value, dtype) for value in _values()] + [tf.constant([-0.0, 1e-8], dtype)]
    for got, value in zip(clip(values, np.inf), values, strict=True):
        assert got.dtype == value.dtype
        assert got.numpy().tobytes() == value.numpy().tobytes()


@clips
def test_none_stays_none_and_zero_stays_zero(clip, reference):
    result = clip([None, np.zeros(3, "float32"), np.array([9.0], "float32")], 1.0)
    assert result[0] is None
    np.testing.assert_array_equal(result[1], [0.0, 0.0, 0.0])
    np.testing.assert_allclose(result[2], [1.0], rtol=1e-6)


@pytest.mark.parametrize("name", ["clip_by_norm", "clip_by_global_norm"])
def test_the_bound_holds_where_plain_norms_overflow(name):
    clip = CLIPS[name][0]
    (got,) = clip([np.full(4, 1e20, "float32")], 1.0)
    np.testing.assert_allclose(got, np.full(4, 0.5), rtol=1e-6)
    (got,) = clip([np.full(4, 304.0, "float16")], 1.0)
    assert got.dtype == tf.float16
    np.testing.assert_allclose(got, np.full(4, 0.5))


@pytest.mark.parametrize("entry", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_passed_on_as_it_came(entry):
    bad = [np.array([entry, 2.0], "float32"), np.array([3.0, 4.0], "float32")]
    first, second = functional.clip_by_norm(bad, 1.0)
    np.testing.assert_array_equal(first, bad[0])
    np.testing.assert_allclose(second, [0.6, 0.8], rtol=1e-6)
    for got, value in zip(functional.clip_by_global_norm(bad, 1.0), bad, strict=True):
        np.testing.assert_array_equal(got, value)
    np.testing.assert_array_equal(
        functional.clip_by_value(bad, 1.0)[0], [np.clip(entry, -1, 1), 1.0]
    )
