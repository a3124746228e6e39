"""Statistics of many tensors at once, against NumPy tensor by tensor."""

import numpy as np
import pytest
import tensorflow as tf

from gradstab.functional import statistics

# Small ones of one size are looked at together, in whatever order and shape they come.
SHAPES = [(4, 3), (), (12,), None, (0, 2), (3, 4), (20_000,), (5,), (20_000,)]


def _tensors(*, finite):
    draw = np.random.default_rng(0)
    values = [
        None if shape is None else np.asarray(draw.normal(size=shape), "float32")
        for shape in SHAPES
    ]
    values[0][1, 2], values[5][:] = 0.0, -np.abs(values[5])
    values[7] = values[7].astype("float16")
    if not finite:
        values[0][0, 0], values[5][1, 1], values[6][7] = np.nan, -np.inf, np.inf
    return values


def _each(values, function):
    return [0.0 if value is None or value.size == 0 else function(value) for value in values]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("finite", [True, False])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_each_tensor_has_its_own_number(finite, jit_compile):
    values = _tensors(finite=finite)
    present = [value for value in values if value is not None]

    @tf.function(jit_compile=jit_compile)
    def measure(*tensors):
        rest = iter(tensors)
        given = [None if shape is None else next(rest) for shape in SHAPES]
        return (
            statistics.largest_magnitudes(given),
            statistics.counts_of_nonfinite(given),
            statistics.norms_in_double(given),
            statistics.counts_of_nonzero(given),
            statistics.dot_products(given, given),
        )

    largest, nonfinite, norms, nonzero, dots = measure(*present)
    expected = _each(values, lambda v: np.abs(np.where(np.isfinite(v), v, 0)).max())
    np.testing.assert_array_equal(largest, np.array(expected, "float32"))
    np.testing.assert_array_equal(nonfinite, _each(values, lambda v: (~np.isfinite(v)).sum()))
    np.testing.assert_array_equal(nonzero, _each(values, lambda v: (v != 0).sum()))
    exact = _each(values, lambda v: (v.astype("float64") ** 2).sum())
    np.testing.assert_allclose(dots, exact, rtol=1e-4)
    np.testing.assert_allclose(norms, np.sqrt(exact), rtol=1e-6)
