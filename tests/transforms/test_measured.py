"""Tensors that take the place of others where a condition holds."""

import common_checks as checks
import numpy as np
import pytest
import tensorflow as tf

from gradstab.functional._backend import choose_all
from gradstab.transforms.measured import Measured

VALUES = [np.array([3.0, 4.0], "float32"), None, np.array([[12.0]], "float32")]
OTHERS = [np.array([0.0, 1.0], "float32"), None, np.array([[2.0]], "float32")]


@pytest.mark.parametrize("mode", checks.MODES)
@pytest.mark.parametrize("condition", [True, False])
@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_others_come_with_their_norms_and_count_as_a_clip(mode, condition, factor):
    def results(holds, times):
        values = Measured([None if v is None else tf.constant(v) for v in VALUES])
        others = [None if v is None else tf.constant(v) for v in OTHERS]
        replaced = values.scaled(times).replaced(
            holds, lambda: others, lambda: tf.constant([1.0, 0.0, 2.0])
        )
        is_changed, (unchanged, changed) = replaced.forms()
        scaled = replaced.scaled(2.0)
        # A branch of its own, as that which applies a step.
        first = tf.cond(is_changed, lambda: changed()[0], lambda: unchanged()[0])
        return (
            first,
            [v for v in replaced.values if v is not None],
            replaced.norms,
            replaced.global_norm,
            replaced.clipped,
            [v for v in scaled.values if v is not None],
        )

    first, values, norms, global_norm, clipped, doubled = checks.compiled(results, mode)(
        tf.constant(condition), tf.constant(factor)
    )
    expected = [
        v if condition else factor * w for v, w in zip(OTHERS, VALUES, strict=True) if v is not None
    ]
    np.testing.assert_array_equal(first, expected[0])
    for got, twice, value in zip(values, doubled, expected, strict=True):
        np.testing.assert_array_equal(got, value)
        np.testing.assert_array_equal(twice, 2 * value)
    each = [np.linalg.norm(value) for value in expected]
    np.testing.assert_allclose(norms, [each[0], 0.0, each[1]], rtol=1e-6)
    np.testing.assert_allclose(global_norm, np.linalg.norm(each), rtol=1e-6)
    assert bool(clipped) == (condition or factor < 1)


@pytest.mark.parametrize("mode", checks.MODES)
def test_a_list_without_tensors_has_none_to_choose(mode):
    function = checks.compiled(
        lambda holds: len(choose_all(holds, lambda: [None, None], lambda: [None, None])), mode
    )
    assert int(function(tf.constant(True))) == 2
