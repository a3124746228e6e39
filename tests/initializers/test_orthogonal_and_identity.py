"""Convolutions that keep norms, or everything, judged by what they do to a signal."""

import keras
import numpy as np
import pytest

from gradstab.initializers import ConvolutionIdentity, DeltaOrthogonal, ZerO

DRAW = np.random.default_rng(0)
LAYERS = {1: keras.layers.Conv1D, 2: keras.layers.Conv2D, 3: keras.layers.Conv3D}
TRANSPOSED = {
    1: keras.layers.Conv1DTranspose,
    2: keras.layers.Conv2DTranspose,
    3: keras.layers.Conv3DTranspose,
}


def _signal(rank, channels):
    return DRAW.normal(size=(2, *[6] * rank, channels)).astype("float32")


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_delta_orthogonal_keeps_the_norm(rank, size):
    x = _signal(rank, 4)
    for kind, transposed in ((LAYERS, False), (TRANSPOSED, True)):
        initializer = DeltaOrthogonal(gain=1.5, seed=rank, transposed=transposed)
        layer = kind[rank](7, size, padding="same", kernel_initializer=initializer)
        y = keras.ops.convert_to_numpy(layer(x))
        np.testing.assert_allclose(
            np.linalg.norm(y, axis=-1), 1.5 * np.linalg.norm(x, axis=-1), rtol=1e-5
        )


def test_it_keeps_the_norm_in_a_circular_convolution():
    x = DRAW.normal(size=(1, 8, 8, 16)).astype("float32")
    kernel = keras.ops.convert_to_numpy(DeltaOrthogonal(seed=1)((3, 3, 16, 16)))
    y = np.zeros_like(x)
    for row in range(3):  # By hand, with wrapped borders.
        for column in range(3):
            y += np.roll(x, (1 - row, 1 - column), axis=(1, 2)) @ kernel[row, column]
    assert np.linalg.norm(y) == pytest.approx(np.linalg.norm(x), rel=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolution_identity_changes_nothing(rank, size):
    x = _signal(rank, 4)
    for outputs in (3, 4, 6):
        layer = LAYERS[rank](
            outputs, size, padding="same", kernel_initializer=ConvolutionIdentity()
        )
        y = keras.ops.convert_to_numpy(layer(x))
        expected = np.zeros((*x.shape[:-1], outputs), "float32")
        expected[..., :4] = x[..., :outputs]
        np.testing.assert_array_equal(y, expected)


def test_convolution_identity_in_groups():
    x = _signal(1, 4)
    layer = keras.layers.Conv1D(
        6, 3, padding="same", groups=2, kernel_initializer=ConvolutionIdentity(2.0, groups=2)
    )
    y = keras.ops.convert_to_numpy(layer(x))
    np.testing.assert_array_equal(y[..., [0, 1, 3, 4]], 2 * x)
    assert not y[..., [2, 5]].any()


@pytest.mark.parametrize(("inputs", "outputs"), [(4, 4), (6, 4), (3, 5), (8, 16), (40, 100)])
def test_zero_follows_the_paper(inputs, outputs):
    matrix = keras.ops.convert_to_numpy(ZerO()((inputs, outputs)))
    if inputs >= outputs:
        expected = np.eye(inputs, outputs)
    else:
        power = int(np.ceil(np.log2(outputs)))
        hadamard = np.ones((1, 1))
        for _ in range(power):
            hadamard = np.kron([[1, 1], [1, -1]], hadamard)
        expected = 2.0 ** (-(power - 1) / 2) * hadamard[:inputs, :outputs]
    np.testing.assert_allclose(matrix, expected, rtol=1e-6)
    kernel = keras.ops.convert_to_numpy(ZerO()((3, 3, inputs, outputs)))
    np.testing.assert_array_equal(kernel[1, 1], matrix)
    assert np.count_nonzero(kernel) == np.count_nonzero(matrix)
