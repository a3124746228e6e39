import math

import numpy as np
import pytest
import references
import tensorflow as tf

from gradstab.functional import all_finite, finite, global_norm, norm, norms
from gradstab.functional.norms import norms_and_global_norm

PAIR = [np.array([500.0, 5.0]), np.array([300.0, 3.0])]
SEQUENCE = [np.arange(1.0, 101.0).reshape(10, 10), np.ones(10) / 1000]


def test_published_norm_of_the_pair():
    np.testing.assert_allclose(global_norm(PAIR), 583.1243435, rtol=1e-7)


@pytest.mark.parametrize(
    ("ord", "expected"),
    [(0.5, 451287.26), (1.5, 1179.3574), (2, 581.678605), (4, 212.792402), (math.inf, 100)],
)
def test_published_p_norms(ord, expected):
    np.testing.assert_allclose(global_norm(SEQUENCE, ord), expected, rtol=2e-7)
    np.testing.assert_allclose(references.global_norm(SEQUENCE, ord), expected, rtol=2e-7)


@pytest.mark.parametrize("ord", [0.5, 1, 2, 3, math.inf])
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e20, 1e30])
def test_norms_are_right_where_powers_over_or_underflow(ord, scale):
    draw = np.random.default_rng(0)
    values = [
        (scale * draw.normal(size=shape)).astype("float32") for shape in [(3, 2), (5,), (), (1, 1)]
    ]
    np.testing.assert_allclose(
        norms(values, ord), [references.norm(v, ord) for v in values], rtol=3e-6
    )
    np.testing.assert_allclose(
        global_norm(values, ord), references.global_norm(values, ord), rtol=3e-6
    )


def test_float32_entries_whose_squares_overflow():
    assert np.isclose(float(norm(np.full(4, 1e20, "float32"))), 2e20)
    assert np.isclose(float(global_norm([np.full(4, 1e20, "float32"), np.ones(3)])), 2e20)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_summed_in_float32(dtype):
    value = tf.fill([4], tf.constant(304.0, dtype))  # 304² is beyond float16
    assert norm(value).dtype == global_norm([value]).dtype == tf.float32
    assert float(norm(value)) == float(global_norm([value])) == 608.0
    assert np.isclose(float(global_norm([tf.fill([4], tf.constant(1e-5, dtype))])), 2e-5, rtol=0.02)
    many = tf.ones([2**16], dtype)  # the sum itself ends at 2048 in float16
    assert float(norm(many)) == 256.0


def test_float64_stays_float64_where_alone():
    assert norm(np.array([3.0, 4.0])).dtype == tf.float64
    assert float(norm(np.full(4, 1e200))) == 2e200


def test_none_and_empty_count_for_nothing():
    np.testing.assert_array_equal(norms([None, np.array([3.0]), np.zeros((0, 2))]), [0.0, 3.0, 0.0])
    np.testing.assert_array_equal(norms([None, None]), [0.0, 0.0])
    assert float(global_norm([None, np.array([-5.0], "float32"), np.zeros(0, "float32")])) == 5.0


@pytest.mark.parametrize("ord", [1, 2, math.inf])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_entries_show_in_their_own_norm_only(bad, ord):
    values = [np.array([1.0, bad], "float32"), np.array([1.0, 2.0], "float32")]
    first, second = norms(values, ord).numpy()
    assert np.isnan(first) if np.isnan(bad) else first == np.inf
    assert second == np.float32(references.norm(values[1], ord))
    assert not np.isfinite(float(global_norm(values, ord)))


@pytest.mark.parametrize("ord", [0, -1, float("nan")])
def test_an_order_that_is_no_norm_is_refused(ord):
    with pytest.raises(ValueError, match=r"`ord` must be a positive float. Received: ord="):
        norm(np.ones(2), ord)


def test_finite():
    values = [np.array([1.0]), None, np.array([[1.0, np.nan]]), np.array(np.inf), tf.zeros((0,))]
    assert finite(values).numpy().tolist() == [True, True, False, False, True]
    assert not bool(all_finite(values))
    assert bool(all_finite(values[:2]))
    # An entry is finite where it is; only its square overflows.
    assert bool(all_finite([np.array([3e38], "float32"), np.array([65504.0], "float16")]))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_under_xla_squares_neither_overflow_nor_underflow(scale):
    values = [np.array([3.0, 4.0], "float32") * np.float32(scale), np.array([12.0], "float32")]
    values[1] *= np.float32(scale)
    each, total = tf.function(norms_and_global_norm, jit_compile=True)(
        [tf.constant(value) for value in values]
    )
    np.testing.assert_allclose(each, np.array([5.0, 12.0]) * scale, rtol=1e-6)
    np.testing.assert_allclose(total, 13.0 * scale, rtol=1e-6)
