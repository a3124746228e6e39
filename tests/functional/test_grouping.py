"""Small tensors of one shape are handled as one, and give what each gives by itself."""

import numpy as np
import pytest
import references
import tensorflow as tf

from gradstab.functional._grouping import alike
from gradstab.functional.clipping import scale_each
from gradstab.functional.norms import norms, norms_and_global_norm
from gradstab.keras_hooks.conditions import is_compiled_by_xla

# Six alike, others between them that are alone: too large, of another dtype or shape, or missing.
SHAPES = [(8,), (40, 40), (8,), None, (2, 4), (8,), (), (8,), (0,), (8,), (8,)]
HALF = 4  # place of the only tensor in half precision


def _values(size=1.0):
    draw = np.random.default_rng(0)
    values = [
        None if shape is None else np.asarray(size * draw.normal(size=shape), "float32")
        for shape in SHAPES
    ]
    values[HALF] = draw.normal(size=SHAPES[HALF]).astype("float16")
    return values


def test_what_is_alike_and_small_is_together():
    values = _values()
    assert alike(values, 8) == [[0, 2, 5, 7, 9, 10], [1], [4], [6], [8]]
    assert alike(values, 7) == [[0], [1], [2], [4], [5], [6], [7], [8], [9], [10]]
    assert alike(values[:6], 8) == [[0], [2], [5], [1], [4]]  # three are too few


def test_a_tensor_of_unknown_size_is_alone():
    found = []

    @tf.function(input_signature=[tf.TensorSpec((None, 2))])
    def function(x):
        found.append(alike([x] * 5, 100))
        return x

    function(tf.zeros((3, 2)))
    assert found == [[[0], [1], [2], [3], [4]]]


def _compiled(function, values, mode):
    """Return what a function of tensors gives, all of its results in one list."""
    places = [place for place, value in enumerate(values) if value is not None]

    def call(*tensors):
        given = [None] * len(values)
        for place, tensor in zip(places, tensors, strict=True):
            given[place] = tensor
        return [result for result in function(given) if result is not None]

    if mode != "eager":
        call = tf.function(call, jit_compile=mode == "xla")
    return call(*(tf.constant(values[place]) for place in places))


modes = pytest.mark.parametrize("mode", ["eager", "graph", "xla"])


@modes
# Squares underflow or overflow.
@pytest.mark.parametrize("size", [1.0, 1e-30, 1e30])
def test_norms_are_those_of_each(mode, size):
    values = _values(size)
    vector, also, total = _compiled(
        lambda given: [norms(given), *norms_and_global_norm(given)], values, mode
    )
    expected = np.array([0 if v is None else references.norm(v, 2) for v in values])
    np.testing.assert_allclose(vector, expected, rtol=3e-6)
    # Of all at once, those count as zero whose squares are lost beside the others.
    np.testing.assert_allclose(also, expected, rtol=3e-6, atol=1e-19)
    np.testing.assert_allclose(total, np.linalg.norm(expected.astype("float64")), rtol=3e-6)


@modes
@pytest.mark.parametrize("alone", [(0,), (0, 3)])
def test_a_few_small_tensors_of_one_shape_keep_their_places(mode, alone):
    # Biases of two layers between kernels: too few to be handled as one.
    shapes = [(9, 8), (16,), (30, 40), (16,), (8, 9)]
    draw = np.random.default_rng(1)
    values = [np.asarray(draw.normal(size=shape), "float32") for shape in shapes]
    for place in alone:
        values.insert(place, np.float32(7.0))
    vector, also, scaled = _compiled(
        lambda given: [
            norms(given),
            norms_and_global_norm(given)[0],
            norms(scale_each(given, tf.range(1.0, len(given) + 1.0))),
        ],
        values,
        mode,
    )
    expected = np.array([references.norm(value, 2) for value in values])
    for got in (vector, also, scaled / np.arange(1, len(values) + 1)):
        np.testing.assert_allclose(got, expected, rtol=3e-6)


@modes
def test_a_norm_that_is_not_finite_is_that_tensors_own(mode):
    values = _values()
    values[5][3], values[9][0] = np.nan, np.inf
    (vector,) = _compiled(lambda given: [norms(given)], values, mode)
    assert np.flatnonzero(~np.isfinite(vector)).tolist() == [5, 9]


@modes
@pytest.mark.parametrize("per_tensor", [False, True])
def test_what_is_scaled_has_the_bits_of_each_product(mode, per_tensor):
    values = _values()
    factors = np.float32(np.linspace(0.1, 1.3, len(values)) if per_tensor else 0.3)
    found = _compiled(lambda given: scale_each(given, factors), values, mode)
    each = np.broadcast_to(factors, (len(values),))
    expected = [
        (value.astype("float32") * factor).astype(value.dtype)
        for value, factor in zip(values, each, strict=True)
        if value is not None
    ]
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_xla_is_told_from_a_plain_graph(jit_compile):
    found = []

    @tf.function(jit_compile=jit_compile)
    def function(x):
        found.append(is_compiled_by_xla())
        return x

    function(tf.constant(1.0))
    assert found == [jit_compile]
    assert not is_compiled_by_xla()


def test_in_a_graph_one_operation_serves_all_that_are_alike():
    @tf.function
    def function(values):
        return scale_each(values, 1.0 / norms_and_global_norm(values)[1])

    graph = function.get_concrete_function([tf.TensorSpec((8,))] * 20).graph
    kinds = [operation.type for operation in graph.get_operations()]
    assert kinds.count("Mul") < 4
    assert "L2Loss" not in kinds
